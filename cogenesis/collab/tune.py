"""`cogenesis collab tune`: fine-tunes the device's model behind the prompts that it will see."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.records import RecordsArgument, report_skipped, usable_records
from cogenesis.options.training import (
    HOW,
    ClipOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    PrecisionOption,
    SaveEveryOption,
    ScheduleOption,
    SeedOption,
    ThreadsOption,
    WarmupOption,
    team_on,
)
from cogenesis.options.users import ModelOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.adapters.settings import SHORTEST, AdapterSettings
from personalization.collab.records.shown import Shown
from personalization.models.device import Device
from personalization.models.libraries import prepare_command
from personalization.models.precision import Precision
from personalization.training.rate_schedule import RateSchedule
from personalization.training.settings import TuningSettings

if TYPE_CHECKING:
    from personalization.collab.tuning import Tuned

ADAPTER = "An adapter instead of all weights"
CURVES_NAME = "curves.svg"
_DEFAULTS = TuningSettings(epochs=5, batch=4, rate=5e-5, schedule=RateSchedule.COSINE, warmup=0.05, save_every=20)
_LORA = AdapterSettings(rank=16, targets="all")
_LORA_RATE = 5e-4
_PACK, _PACK_ON_CPU = 4096, 512


def tune(
    records: RecordsArgument,
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the tuned model, or of the adapter.")],
    context: Annotated[
        Shown, typer.Option(help="What the prompts hold besides the instruction; sketch: context and sketch.")
    ] = Shown.WITH,
    dev: Annotated[
        Path | None, typer.Option(help="Records of other users, which tell the best epoch.", show_default=False)
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=SHORTEST, help="Most tokens of prompt and answer; what is longer loses history first.")
    ] = 4096,
    pack_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Most tokens of the examples that go through the model as one row; {_PACK} unless given, "
            f"{_PACK_ON_CPU} on a CPU, which computes attention between them in vain.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train one.", rich_help_panel=ADAPTER)] = False,
    rank: Annotated[int, typer.Option(help="Of its matrices.", rich_help_panel=ADAPTER)] = _LORA.rank,
    alpha: Annotated[float, typer.Option(help="It is scaled by alpha / rank.", rich_help_panel=ADAPTER)] = _LORA.alpha,
    dropout: Annotated[
        float, typer.Option(help="Share of its inputs that is dropped.", rich_help_panel=ADAPTER)
    ] = _LORA.dropout,
    targets: Annotated[
        str, typer.Option(help="qv, attention, all, or names of layers by commas.", rich_help_panel=ADAPTER)
    ] = _LORA.targets,
    epochs: Annotated[int, typer.Option(help="Passes over the records.", rich_help_panel=HOW)] = _DEFAULTS.epochs,
    batch: Annotated[
        int, typer.Option(help="Packs of an optimizer step, over all processes.", rich_help_panel=HOW)
    ] = _DEFAULTS.batch,
    rate: Annotated[
        float | None,
        typer.Option(
            help=f"Highest learning rate, of AdamW; {_DEFAULTS.rate} unless given, {_LORA_RATE} for an adapter.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None,
    schedule: ScheduleOption = _DEFAULTS.schedule,
    warmup: WarmupOption = _DEFAULTS.warmup,
    clip: ClipOption = _DEFAULTS.clip,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Less memory for a third more time.", rich_help_panel=HOW),
    ] = False,
    save_every: SaveEveryOption = _DEFAULTS.save_every,
    seed: SeedOption = _DEFAULTS.seed,
    threads: ThreadsOption = _DEFAULTS.threads,
    device: DeviceOption = Device.CPU,
    precision: PrecisionOption = Precision.FLOAT32,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune the device's model on records: the references behind the prompts that the device makes of them.

    All weights, for `export onnx`, or a LoRA adapter, for `export adapter`. With --dev the epoch is kept after which
    those references are likeliest. Records without what --context asks for are left out. The curves lie beside the
    weights. An interrupted run goes on where it was; several processes train together by `accelerate launch -m
    cogenesis ...`.

    Example:
      cogenesis collab tune tune.jsonl -m edge --dev dev.jsonl --context with --precision bfloat16 -o tuned
    """
    settings = TuningSettings(
        epochs=epochs,
        batch=batch,
        rate=rate if rate is not None else _LORA_RATE if lora else _DEFAULTS.rate,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        save_every=save_every,
        seed=seed,
        threads=threads,
    )
    adapter = AdapterSettings(rank=rank, alpha=alpha, dropout=dropout, targets=targets) if lora else None
    prepare_command()
    from personalization.collab.tuning import TuningPlan, tune_model
    from personalization.training.curve_plot import draw_curves

    training, judging = usable_records(records), usable_records(dev) if dev else ()
    team = team_on(device)
    row = pack_tokens or (_PACK_ON_CPU if device is Device.CPU else _PACK)
    plan = TuningPlan(context, max_length, row, adapter, checkpointing, precision, settings)
    with progress_bar(visible=team.leads) as progress:
        tuned = tune_model(model, out, training, judging, plan, team, force=force, progress=progress)
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
    typer.echo(f"loss: {report.losses[0]:.4f} nats a token in the first epoch, {report.losses[-1]:.4f} in the last")
    if dev_losses:
        typer.echo(
            f"loss on {tuned.judges} other records: {dev_losses[0]:.4f} untuned, {dev_losses[report.kept_epoch]:.4f} "
            f"after epoch {report.kept_epoch}, which is kept"
        )
