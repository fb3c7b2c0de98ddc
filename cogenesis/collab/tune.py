"""`cogenesis collab tune`: fine-tunes the device's model on the prompts that a device builds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.expand import expand
from cogenesis.options.lora import ADAPTER, LoraOptions
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.records import RecordsArgument, report_skipped, usable_records
from cogenesis.options.training import HOW, MaxLengthOption, PrecisionOption, TrainingOptions, team_on
from cogenesis.options.users import BaseModelOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.adapters.settings import AdapterSettings
from personalization.collab.records.shown import Shown
from personalization.models.device import Device
from personalization.models.libraries import prepare_command
from personalization.models.precision import Precision
from personalization.training.rate_schedule import RateSchedule

if TYPE_CHECKING:
    from personalization.collab.tuning import Tuned

CURVES_NAME = "curves.svg"
_RATE, _LORA_RATE = 5e-5, 5e-4
_TRAINING = TrainingOptions(epochs=5, batch=4, rate=None, rate_schedule=RateSchedule.COSINE, warmup=0.05, save_every=20)
_LORA = LoraOptions(rank=16, targets="all")
_PACK, _PACK_ON_CPU = 4096, 512


@expand
def tune(
    records: RecordsArgument,
    model: BaseModelOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Directory of the tuned model, or of the adapter, to write.", show_default=False
        ),
    ],
    shown: Annotated[
        Shown, typer.Option(help="Content of prompts besides the instruction. sketch: context and sketch.")
    ] = Shown.WITH,
    dev: Annotated[
        Path | None, typer.Option(help="Records of other users, which select the best epoch.", show_default=False)
    ] = None,
    max_length: MaxLengthOption = 4096,
    pack_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Maximum tokens of the examples packed into one row. Default: {_PACK}, on a CPU {_PACK_ON_CPU}, "
            "because a CPU also computes the attention between examples.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train an adapter instead of all weights.", rich_help_panel=ADAPTER)
    ] = False,
    *,
    adapter: LoraOptions = _LORA,
    training: TrainingOptions = _TRAINING,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="Use activation checkpointing: less memory, and a third more time.",
            rich_help_panel=HOW,
        ),
    ] = False,
    precision: PrecisionOption = Precision.FLOAT32,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the device's model on the references of records, with the prompts that a device builds from them.

    The command trains all weights, for `export onnx`, or with --lora an adapter, for `export adapter`. The default peak
    learning rate is 5e-5, for an adapter 5e-4. With --dev the command keeps the epoch after which those references are
    most likely. It leaves out records that lack a part that --shown requires. It writes the loss curves beside the
    weights. An interrupted run resumes. Several processes can train together: `accelerate launch -m cogenesis ...`.

    Example:
      cogenesis collab tune tune.jsonl -m edge --dev dev.jsonl --shown with --precision bfloat16 -o tuned
    """
    rate = training.rate if training.rate is not None else _LORA_RATE if lora else _RATE
    settings = training.tuning(rate=rate)
    trained_adapter = AdapterSettings(**asdict(adapter)) if lora else None
    prepare_command()
    from personalization.collab.tuning import TuningPlan, tune_model
    from personalization.training.curve_plot import draw_curves

    learned, judging = usable_records(records), usable_records(dev) if dev else ()
    team = team_on(training.device)
    row = pack_tokens or (_PACK_ON_CPU if training.device is Device.CPU else _PACK)
    plan = TuningPlan(shown, max_length, row, trained_adapter, checkpointing, precision, settings)
    with progress_bar(visible=team.leads) as progress:
        tuned = tune_model(Path(model), out, learned, judging, plan, team, force=force, progress=progress)
    if team.leads:
        losses = [-gain for gain in tuned.trained.report.gains]
        report_skipped(tuned.left_out, records)
        draw_curves(out / CURVES_NAME, tuned.trained.report, "loss of the references", losses)
        _say(tuned, losses, as_json)


def _say(tuned: Tuned, dev_losses: list[float], as_json: bool) -> None:
    trained = tuned.trained
    report = trained.report
    if as_json:
        body = {
            "out": str(trained.path),
            "kept": trained.kept,
            "records": tuned.examples,
            "dev_records": tuned.judges,
            "left_out": [asdict(one) for one in tuned.left_out],
            "shortened": tuned.shortened,
            "packs": tuned.packs,
            "steps": report.steps,
            "losses": report.losses,
            "dev_losses": dev_losses,
            "kept_epoch": report.kept_epoch,
        }
        typer.echo(json.dumps(body))
        return
    typer.echo(f"{'Was tuned already' if trained.kept else 'Tuned'}: {trained.path}")
    typer.echo(
        f"{tuned.examples} records in {tuned.packs} packs; {tuned.shortened} of all shortened, {len(tuned.left_out)} "
        "left out"
    )
    typer.echo(f"loss: {report.losses[0]:.4f} nats per token in the first epoch, {report.losses[-1]:.4f} in the last")
    if dev_losses:
        typer.echo(
            f"loss on {tuned.judges} other records: {dev_losses[0]:.4f} untuned, {dev_losses[report.kept_epoch]:.4f} "
            f"after epoch {report.kept_epoch}, which is kept"
        )
