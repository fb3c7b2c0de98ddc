"""Draws the plots of an evaluation from the JSON of `collab evaluate`; the same numbers give the same file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_runtime.extras import require_packages
from edge_runtime.files.whole_file import whole_file
from personalization.collab.evaluation.fusion_likelihood import NLL
from personalization.collab.evaluation.measures import QUALITY
from personalization.collab.evaluation.systems import Writer

FUSION_PLOT, ANSWERS_PLOT = "fusion.svg", "answers.svg"


def draw_evaluation(body: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write the plots of an evaluation.

    Args:
        body: the result of `report.read_evaluation`.
        directory: directory for the plots.

    Returns:
        The paths of the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_packages("Drawing plots", "matplotlib", extra="train")
    drawn = []
    if body["likelihood"]:
        drawn.append(_saved(_fusion(body["likelihood"]), directory / FUSION_PLOT))
    if body["answers"]:
        drawn.append(_saved(_answers(body["answers"]), directory / ANSWERS_PLOT))
    return drawn


def _fusion(found: Mapping[str, Any]) -> Any:
    figure, (weights, calls) = _figure(2, (11, 4.2))
    nll = {row["system"]: row["scores"][NLL] for row in found["systems"]}
    for strategy, points in found["sweeps"].items():
        weights.plot(*zip(*points, strict=True), marker=".", label=strategy)
    for name in (Writer.EDGE, Writer.CLOUD, found["baseline"]):
        if name not in nll:  # a served cloud does not send complete rows
            continue
        weights.axhline(nll[name], linestyle="--", linewidth=0.9, color="0.3")
        weights.annotate(
            name, (1.0, nll[name]), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom"
        )
    weights.set_xlabel("weight")
    weights.set_ylabel("NLL, nats a token")
    weights.legend(fontsize=8)
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for one in found["calls"]:
        by_kind.setdefault(_schedule(one["system"]), []).append((one["share"], one["nll"]))
    for kind, points in by_kind.items():
        calls.plot(*zip(*sorted(points), strict=True), marker="o", label=kind)
    calls.set_xlabel("share of the tokens that ask the cloud")
    calls.set_ylabel("NLL, nats a token")
    if by_kind:
        calls.legend(fontsize=8)
    return figure


def _schedule(system: str) -> str:
    """Return the kind of a system's schedule, from its name."""
    when = system.partition("@")[2]
    if when.startswith("known"):
        return "if the worth were known"
    if when.startswith("learned:"):
        return "learned, a share of every answer"
    return "learned, a share of all" if when.startswith(("learned", "predicted")) else "P, K, T"


def _answers(found: Mapping[str, Any]) -> Any:
    systems = found["systems"]
    figure, axes = _figure(len(QUALITY), (13, 1.2 + 0.3 * len(systems)), sharey=True)
    places = range(len(systems))
    for axis, name in zip(axes, QUALITY, strict=True):
        for place, row in zip(places, systems, strict=True):
            score = row["scores"][name]
            against = row.get("against", {}).get(name)
            # The interval belongs to the difference, so it is drawn around the score.
            reach = (
                [[against["difference"] - against["low"]], [against["high"] - against["difference"]]]
                if against
                else None
            )
            axis.errorbar(score, place, xerr=reach, fmt="o", markersize=4, capsize=2, color="C1" if against else "C0")
        axis.set_title(name, fontsize=10)
    axes[0].set_yticks(list(places), [row["system"] for row in systems], fontsize=8)
    axes[0].invert_yaxis()
    return figure


def _figure(columns: int, size: tuple[float, float], *, sharey: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, sharey=sharey)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "evaluation"}), whole_file(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return path
