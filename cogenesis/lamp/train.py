"""`cogenesis lamp train`: fine-tunes a language model on LaMP's questions, with profile items in the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.answering import (
    MAX_NEW_TOKENS,
    ItemsOption,
    MaxLengthOption,
    MaxNewTokensOption,
    MergedOption,
    TaskOption,
)
from cogenesis.options.training import (
    HOW,
    BatchOption,
    ClipOption,
    DeviceOption,
    EpochsOption,
    ForceOption,
    SaveEveryOption,
    ScheduleOption,
    SeedOption,
    ThreadsOption,
    WarmupOption,
    team_on,
)
from cogenesis.options.users import JsonOption, ModelOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import all_gold_outputs, with_first_items
from personalization.lamp.tasks import LampTask, find_task
from personalization.models.device import Device
from personalization.models.libraries import prepare_command
from personalization.training.settings import TuningSettings

if TYPE_CHECKING:
    from personalization.lamp.train import Lesson
    from personalization.training.trained_model import Trained

_DEFAULTS = TuningSettings(epochs=10, rate=5e-5, weight_decay=1e-4, warmup=0.05)
_MAX_LENGTH = 256


def train(
    task: TaskOption,
    questions: MergedOption,
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the trained model.")],
    dev_questions: Annotated[
        Path | None, typer.Option(help="Other questions, merged too, which tell the best epoch.", show_default=False)
    ] = None,
    items: ItemsOption = 1,
    max_length: MaxLengthOption = _MAX_LENGTH,
    max_new_tokens: MaxNewTokensOption = MAX_NEW_TOKENS,
    epochs: EpochsOption = _DEFAULTS.epochs,
    batch: BatchOption = _DEFAULTS.batch,
    rate: Annotated[float, typer.Option(help="Highest learning rate, of AdamW.", rich_help_panel=HOW)] = _DEFAULTS.rate,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=HOW)] = _DEFAULTS.weight_decay,
    schedule: ScheduleOption = _DEFAULTS.schedule,
    warmup: WarmupOption = _DEFAULTS.warmup,
    clip: ClipOption = _DEFAULTS.clip,
    save_every: SaveEveryOption = _DEFAULTS.save_every,
    seed: SeedOption = _DEFAULTS.seed,
    threads: ThreadsOption = _DEFAULTS.threads,
    device: DeviceOption = Device.CPU,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune all weights of a model on questions and their gold outputs, with profile items in the prompt.

    The result is a model directory: `lamp evaluate --model` takes it, and so do `export onnx` and `adapter train`. With
    --dev-questions the epoch is kept after which their gold outputs are likeliest. A run that was interrupted goes on
    where it was. Several processes train together: `accelerate launch -m cogenesis lamp train ...`, or by `torchrun`.

    Example:
      cogenesis lamp train --task LaMP-5 -q train.json --dev-questions dev.json -m flan-t5 -k 4 -o tuned
    """
    settings = TuningSettings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        weight_decay=weight_decay,
        save_every=save_every,
        seed=seed,
        threads=threads,
    )
    prepare_command()
    from personalization.lamp.train import Lengths, train_model

    known = find_task(task)
    training = _lessons(questions, known, items)
    judging = [] if dev_questions is None else _lessons(dev_questions, known, items)
    team = team_on(device)
    lengths = Lengths(max_length, max_new_tokens)
    with progress_bar(visible=team.leads) as progress:
        trained = train_model(
            model, out, known, training, judging, lengths, settings, team, force=force, progress=progress
        )
    if team.leads:
        _say(trained, len(training), len(judging), as_json)


def _lessons(path: Path, task: LampTask, items: int) -> list[Lesson]:
    from personalization.lamp.train import Lesson

    questions = QuestionFile(path, task)
    golds = all_gold_outputs(questions, None)
    return [Lesson(one, golds[one.id]) for one in with_first_items(questions, None, items, own_adapter=False)]


def _say(trained: Trained, questions: int, judges: int, as_json: bool) -> None:
    report = trained.report
    # What judges is the likelihood of the gold outputs; its loss is what people know.
    dev_losses = [-gain for gain in report.gains]
    if as_json:
        body = {
            "out": str(trained.path),
            "kept": trained.kept,
            "questions": questions,
            "dev_questions": judges,
            "steps": report.steps,
            "losses": report.losses,
            "dev_losses": dev_losses,
            "kept_epoch": report.kept_epoch,
        }
        typer.echo(json.dumps(body))
        return
    typer.echo(f"{'Was trained already' if trained.kept else 'Trained'}: {trained.path}")
    typer.echo(f"loss: {report.losses[0]:.4f} in the first epoch, {report.losses[-1]:.4f} in the last")
    if dev_losses:
        typer.echo(
            f"loss on {judges} other questions: {dev_losses[0]:.4f} untrained, {dev_losses[report.kept_epoch]:.4f} "
            f"after epoch {report.kept_epoch}, which is kept"
        )
