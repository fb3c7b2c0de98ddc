"""Draws how a training's loss fell, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_runtime.files.whole_file import whole_file
from personalization.training.fine_tuning import TuningReport


def draw_curves(path: Path, report: TuningReport, what: str, held_out: Sequence[float]) -> None:
    """Draw the loss of each step, its mean over some steps, and the loss on what judges; the same numbers, same bytes.

    Args:
        path: of the file, which is replaced.
        report: of the training.
        what: the loss is, in nats.
        held_out: negative log-likelihood of what judges, nats a token, before the first epoch and after each; none for
            no such curve.

    Raises:
        WriteError: it can't be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "curves"}), whole_file(path) as file:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        steps = range(1, report.steps + 1)
        axis.plot(steps, report.step_losses, color="C0", alpha=0.3, linewidth=1, label=f"{what}: each step")
        axis.plot(steps, smoothed(report.step_losses), color="C0", label=f"{what}: mean of steps around")
        if held_out:
            epochs = [index * report.steps / (len(held_out) - 1) for index in range(len(held_out))]
            axis.plot(epochs, held_out, color="C1", marker="o", label="held-out loss")
            axis.axvline(epochs[report.kept_epoch], color="C1", alpha=0.3, linestyle="--", label="kept")
        axis.set_xlabel("step")
        axis.set_ylabel("nats")
        axis.grid(alpha=0.3)
        axis.legend()
        figure.savefig(file, format="svg", metadata={"Date": None})


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over a twentieth of all values around each; fewer at both ends."""
    reach = len(values) // 40
    windows = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]
