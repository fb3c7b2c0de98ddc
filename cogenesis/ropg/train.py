"""`cogenesis ropg train-kd` and `train-rl`: a retriever learns from what its items were worth to a language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cogenesis.options.training import (
    DEFAULTS,
    BatchOption,
    ClipOption,
    DeviceOption,
    EpochsOption,
    ForceOption,
    JsonOption,
    RateOption,
    SaveEveryOption,
    ScheduleOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    WarmupOption,
    both_or_none,
    say_trained,
    team_on,
)
from cogenesis.terminal.progress_bar import progress_bar
from personalization.lamp.questions import QuestionFile
from personalization.lamp.tasks import find_task
from personalization.models.device import Device
from personalization.models.libraries import prepare_command
from personalization.retrievers.examples import RetrieverExamples, retriever_examples
from personalization.retrievers.feedback import read_item_feedback
from personalization.training.settings import TuningSettings

_DATA = "What to learn from"

TaskOption = Annotated[str, typer.Option(metavar="LaMP-N", help="Whose questions: LaMP-1 to LaMP-7, or LaMP-2-news.")]
QuestionsOption = Annotated[
    Path, typer.Option(help="Questions as the feedback was made of them, merged or not.", rich_help_panel=_DATA)
]
FeedbackOption = Annotated[
    Path, typer.Option(help="What profile items were worth, by `ropg feedback`.", rich_help_panel=_DATA)
]
DevQuestionsOption = Annotated[
    Path | None,
    typer.Option(help="Other questions, which tell the best epoch.", rich_help_panel=_DATA, show_default=False),
]
DevFeedbackOption = Annotated[
    Path | None, typer.Option(help="What their items were worth.", rich_help_panel=_DATA, show_default=False)
]
MetricOption = Annotated[
    str | None,
    typer.Option(help="Of the feedback, where it has several.", rich_help_panel=_DATA, show_default=False),
]
ItemsOption = Annotated[
    int, typer.Option(min=2, help="Most items of a question: the first with feedback.", rich_help_panel=_DATA)
]
UseDateOption = Annotated[
    bool,
    typer.Option("--use-date", help="End items' texts in their dates.", rich_help_panel=_DATA),
]
EncoderOption = Annotated[
    Path, typer.Option(help="To begin with: a directory in Hugging Face format, such as Contriever's.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Directory of the trained encoder.")]

_ITEMS = 20


def train_kd(
    task: TaskOption,
    questions: QuestionsOption,
    feedback: FeedbackOption,
    encoder: EncoderOption,
    out: OutOption,
    dev_questions: DevQuestionsOption = None,
    dev_feedback: DevFeedbackOption = None,
    metric: MetricOption = None,
    items: ItemsOption = _ITEMS,
    use_date: UseDateOption = False,
    epochs: EpochsOption = DEFAULTS.epochs,
    batch: BatchOption = DEFAULTS.batch,
    rate: RateOption = DEFAULTS.rate,
    schedule: ScheduleOption = DEFAULTS.schedule,
    warmup: WarmupOption = DEFAULTS.warmup,
    clip: ClipOption = DEFAULTS.clip,
    temperature: TemperatureOption = DEFAULTS.temperature,
    save_every: SaveEveryOption = DEFAULTS.save_every,
    seed: SeedOption = DEFAULTS.seed,
    threads: ThreadsOption = DEFAULTS.threads,
    device: DeviceOption = Device.CPU,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Distil the feedback on profile items into a retriever (ROPG-KD).

    The result is a directory that `cogenesis lamp rank --ranker` takes. A run that was interrupted goes on where it
    was. Several processes train together: `accelerate launch -m cogenesis ropg train-kd ...`, or by `torchrun`.

    Example:
      cogenesis ropg train-kd --task LaMP-5 --questions merged.json --feedback items.json --encoder contriever -o kd
    """
    settings = TuningSettings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        temperature=temperature,
        save_every=save_every,
        seed=seed,
        threads=threads,
    )
    data = _Data(task, (questions, feedback), (dev_questions, dev_feedback), metric, items, use_date)
    _train("kd", data, encoder, out, settings, device, force=force, as_json=as_json)


def train_rl(
    task: TaskOption,
    questions: QuestionsOption,
    feedback: FeedbackOption,
    encoder: EncoderOption,
    out: OutOption,
    dev_questions: DevQuestionsOption = None,
    dev_feedback: DevFeedbackOption = None,
    metric: MetricOption = None,
    items: ItemsOption = _ITEMS,
    use_date: UseDateOption = False,
    epochs: EpochsOption = DEFAULTS.epochs,
    batch: BatchOption = DEFAULTS.batch,
    rate: RateOption = DEFAULTS.rate,
    schedule: ScheduleOption = DEFAULTS.schedule,
    warmup: WarmupOption = DEFAULTS.warmup,
    clip: ClipOption = DEFAULTS.clip,
    save_every: SaveEveryOption = DEFAULTS.save_every,
    seed: SeedOption = DEFAULTS.seed,
    threads: ThreadsOption = DEFAULTS.threads,
    device: DeviceOption = Device.CPU,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reinforce what a retriever does by the feedback on the item it draws (ROPG-RL).

    For each question an item is drawn from the softmax of the scores; it is made likelier by as much as it was worth
    more than the item that is ranked first. Result, interruption and several processes are as of `train-kd`.

    Example:
      cogenesis ropg train-rl --task LaMP-5 --questions merged.json --feedback items.json --encoder contriever -o rl
    """
    settings = TuningSettings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        save_every=save_every,
        seed=seed,
        threads=threads,
    )
    data = _Data(task, (questions, feedback), (dev_questions, dev_feedback), metric, items, use_date)
    _train("rl", data, encoder, out, settings, device, force=force, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Data:
    """What to learn from: files of questions and of feedback on their items, both for judging too, and what of them."""

    task: str
    training: tuple[Path, Path]
    judging: tuple[Path | None, Path | None]
    metric: str | None
    items: int
    use_date: bool


def _train(
    method: str,
    data: _Data,
    encoder: Path,
    out: Path,
    settings: TuningSettings,
    device: Device,
    *,
    force: bool,
    as_json: bool,
) -> None:
    both_or_none(*data.judging, "--dev-questions and --dev-feedback")
    prepare_command()
    from personalization.retrievers.ropg import Method, train_retriever

    training = _read(data, *data.training)
    dev_questions, dev_feedback = data.judging
    judging = None if dev_questions is None or dev_feedback is None else _read(data, dev_questions, dev_feedback)
    team = team_on(device)
    with progress_bar(visible=team.leads) as progress:
        trained = train_retriever(
            encoder,
            out,
            training.examples,
            () if judging is None else judging.examples,
            Method(method),
            settings,
            team,
            force=force,
            progress=progress,
        )
    numbers: dict[str, Any] = {"questions": len(training.examples), "without_enough_feedback": training.skipped}
    if judging is not None:
        numbers["dev_questions"] = len(judging.examples)
    say_trained(trained, team, numbers, as_json)


def _read(data: _Data, questions: Path, feedback: Path) -> RetrieverExamples:
    found = QuestionFile(questions, find_task(data.task))
    return retriever_examples(found, read_item_feedback(feedback, data.metric), most=data.items, use_date=data.use_date)
