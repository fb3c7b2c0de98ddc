"""Options that the commands which train encoders share, and what these commands say in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personalization.errors import SettingsError
from personalization.models.device import Device
from personalization.models.precision import Precision
from personalization.training.rate_schedule import RateSchedule
from personalization.training.settings import TuningSettings

if TYPE_CHECKING:
    from personalization.training.data_parallel import Team
    from personalization.training.trained_model import Trained

HOW = "How to train"
DEFAULTS = TuningSettings()


EpochsOption = Annotated[int, typer.Option(help="Passes over the questions.", rich_help_panel=HOW)]
BatchOption = Annotated[
    int, typer.Option(help="Questions of an optimizer step, over all processes.", rich_help_panel=HOW)
]
RateOption = Annotated[float, typer.Option(help="Highest learning rate, of Adam.", rich_help_panel=HOW)]
ScheduleOption = Annotated[
    RateSchedule, typer.Option(help="How the rate falls after the warm-up.", rich_help_panel=HOW)
]
WarmupOption = Annotated[float, typer.Option(help="Share of the steps in which the rate rises.", rich_help_panel=HOW)]
ClipOption = Annotated[float, typer.Option(help="Highest norm of a gradient; 0: any.", rich_help_panel=HOW)]
TemperatureOption = Annotated[
    float, typer.Option(help="Of scores and feedback; below 1 the best count for more.", rich_help_panel=HOW)
]
SaveEveryOption = Annotated[
    int, typer.Option(help="Steps after which an interrupted run can go on.", rich_help_panel=HOW)
]
SeedOption = Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=HOW)]
ThreadsOption = Annotated[
    int, typer.Option(help="Of the processor, in a process. Another number gives other bits.", rich_help_panel=HOW)
]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.", rich_help_panel=HOW)]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="Of the computation; bfloat16 is faster where there is hardware for it.", rich_help_panel=HOW),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what was trained otherwise.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def team_on(device: Device) -> Team:
    """The processes that train together, this one on the device asked for.

    Raises:
        SettingsError: there is no GPU.
    """
    from personalization.training.data_parallel import Team

    team = Team(cpu=device is Device.CPU)
    if device is Device.CUDA and not team.device.startswith("cuda"):
        raise SettingsError("There is no GPU that torch can use. Leave out `--device cuda`.")
    return team


def say_trained(trained: Trained, team: Team, numbers: dict[str, Any], as_json: bool) -> None:
    """Print what came of a training, once for all processes.

    Args:
        trained: the result.
        team: only the process that leads it prints.
        numbers: what of the data to tell, by name.
        as_json: as one object, or in words.
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
    """Check that two options come together.

    Raises:
        SettingsError: only one of them is there.
    """
    if (first is None) != (second is None):
        raise SettingsError(f"{names} belong together. Give both, or none.")
