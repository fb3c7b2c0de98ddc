"""Options for training a model, and the training commands' reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.runner import DeviceOption, ThreadsOption
from cogenesis.options.sampling import SeedOption
from personalization.adapters.settings import SHORTEST
from personalization.errors import SettingsError
from personalization.models.device import Device
from personalization.models.precision import Precision
from personalization.training.rate_schedule import RateSchedule
from personalization.training.settings import TuningSettings

if TYPE_CHECKING:
    from personalization.training.data_parallel import Team
    from personalization.training.trained_model import Trained

HOW = "Training"
_DEFAULTS = TuningSettings()

EpochsOption = Annotated[
    int, typer.Option("--epochs", help="Maximum passes over the training data.", rich_help_panel=HOW)
]
RATE = typer.Option("--rate", help="Peak learning rate.", rich_help_panel=HOW)
WeightDecayOption = Annotated[float, typer.Option("--weight-decay", help="Weight decay of AdamW.", rich_help_panel=HOW)]
MaxLengthOption = Annotated[
    int,
    typer.Option(
        "--max-length",
        min=SHORTEST,
        help="Maximum tokens of prompt and answer together. Longer items are truncated or lose past texts.",
        rich_help_panel=HOW,
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Number format for computing. bfloat16 is faster on hardware that supports it.",
        rich_help_panel=HOW,
    ),
]
SoftmaxTemperatureOption = Annotated[
    float,
    typer.Option(
        "--softmax-temperature",
        help="Temperature of the softmaxes over scores and feedback. Below 1, the best items get more weight.",
        rich_help_panel=HOW,
    ),
]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Settings of the optimizer."""

    epochs: EpochsOption = _DEFAULTS.epochs
    batch: Annotated[
        int,
        typer.Option(help="Examples per optimizer step, over all processes.", rich_help_panel=HOW),
    ] = _DEFAULTS.batch
    rate: Annotated[float | None, RATE] = _DEFAULTS.rate
    rate_schedule: Annotated[
        RateSchedule, typer.Option(help="How the learning rate falls after the warm-up.", rich_help_panel=HOW)
    ] = _DEFAULTS.schedule
    warmup: Annotated[
        float,
        typer.Option(
            help="Fraction of the steps for the warm-up, in which the learning rate rises.", rich_help_panel=HOW
        ),
    ] = _DEFAULTS.warmup
    clip: Annotated[float, typer.Option(help="Maximum norm of a gradient; 0: no limit.", rich_help_panel=HOW)] = (
        _DEFAULTS.clip
    )
    seed: SeedOption = _DEFAULTS.seed

    def settings(self) -> dict[str, Any]:
        """Return the settings by their names in `TuningSettings` and `AdapterSettings`."""
        return {
            "epochs": self.epochs,
            "batch": self.batch,
            "rate": self.rate,
            "schedule": self.rate_schedule,
            "warmup": self.warmup,
            "clip": self.clip,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(OptimizerOptions):
    """Settings for training a whole model, and its device."""

    save_every: Annotated[
        int,
        typer.Option(
            help="Save a checkpoint every N steps, from which an interrupted run resumes.",
            metavar="N",
            rich_help_panel=HOW,
        ),
    ] = _DEFAULTS.save_every
    threads: ThreadsOption = _DEFAULTS.threads
    device: DeviceOption = Device.CPU

    def tuning(self, **other: Any) -> TuningSettings:
        """Return the settings, with `other` settings by name.

        Raises:
            SettingsError: a setting is out of range.
        """
        own = {**self.settings(), "save_every": self.save_every, "threads": self.threads}
        return TuningSettings(**{**own, **other})


def team_on(device: Device) -> Team:
    """Return the team of processes that train together, with this one on the given device.

    Raises:
        SettingsError: there is no usable GPU.
    """
    from personalization.training.data_parallel import Team

    team = Team(cpu=device is Device.CPU)
    if device is Device.CUDA and not team.device.startswith("cuda"):
        raise SettingsError("There is no GPU that torch can use. Leave out `--device cuda`.")
    return team


def say_trained(trained: Trained, team: Team, numbers: dict[str, Any], as_json: bool) -> None:
    """Print the result of a training run, once for all processes.

    Args:
        trained: the result.
        team: the team; only its leading process prints.
        numbers: facts about the data to print, by name.
        as_json: whether to print one JSON object instead of text.
    """
    if not team.leads:
        return
    report = trained.report
    if as_json:
        body = {
            "out": str(trained.path),
            "kept": trained.kept,
            **numbers,
            "steps": report.steps,
            "losses": report.losses,
            "gains": report.gains,
            "kept_epoch": report.kept_epoch,
        }
        typer.echo(json.dumps(body, ensure_ascii=False))
        return
    lines = [f"{'Was trained already' if trained.kept else 'Trained'}: {trained.path}"]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in numbers.items()]
    lines.append(f"loss: {report.losses[0]:.4f} in the first epoch, {report.losses[-1]:.4f} in the last")
    if report.gains:
        lines.append(
            f"mean gain of the choice on held-out questions: {report.gains[0]:.4f} untrained, "
            f"{report.gains[report.kept_epoch]:.4f} after epoch {report.kept_epoch}, which is kept"
        )
    typer.echo("\n".join(lines))


def both_or_none(first: Path | None, second: Path | None, names: str) -> None:
    """Check that both options are given, or neither.

    Raises:
        SettingsError: only one of them is given.
    """
    if (first is None) != (second is None):
        raise SettingsError(f"{names} belong together. Give both, or none.")
