"""`cogenesis lamp train`: fine-tunes a language model on LaMP's questions, with profile items in the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.answering import MaxPromptTokensOption
from cogenesis.options.expand import expand
from cogenesis.options.lamp import DevQuestionsOption, NumRetrievedOption, QuestionsOption, TaskOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.sampling import MaxNewTokensOption
from cogenesis.options.training import TrainingOptions, WeightDecayOption, team_on
from cogenesis.options.users import BaseModelOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import all_gold_outputs, with_first_items
from personalization.lamp.tasks import LampTask, find_task
from personalization.models.libraries import prepare_command

if TYPE_CHECKING:
    from personalization.lamp.train import Lesson
    from personalization.training.trained_model import Trained

_TRAINING = TrainingOptions(epochs=10, rate=5e-5, warmup=0.05)


@expand
def train(
    task: TaskOption,
    questions: QuestionsOption,
    model: BaseModelOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the trained model to write.", show_default=False)
    ],
    dev_questions: DevQuestionsOption = None,
    num_retrieved: NumRetrievedOption = 1,
    max_prompt_tokens: MaxPromptTokensOption = 256,
    max_new_tokens: MaxNewTokensOption = 128,
    training: TrainingOptions = _TRAINING,
    weight_decay: WeightDecayOption = 1e-4,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune all weights of a model on questions and their gold outputs, with profile items in the prompt.

    The result is a model directory for `lamp evaluate --model`, `export onnx` and `adapter train`. With --dev-questions
    the command keeps the epoch after which their gold outputs are most likely. An interrupted run resumes. Several
    processes can train together: start them with `accelerate launch -m cogenesis lamp train ...` or `torchrun`.

    Example:
      cogenesis lamp train --task LaMP-5 -q train.json --dev-questions dev.json -m flan-t5 -k 4 -o tuned
    """
    settings = training.tuning(weight_decay=weight_decay)
    prepare_command()
    from personalization.lamp.train import Lengths, train_model

    known = find_task(task)
    lessons = _lessons(questions, known, num_retrieved)
    judging = [] if dev_questions is None else _lessons(dev_questions, known, num_retrieved)
    team = team_on(training.device)
    lengths = Lengths(max_prompt_tokens, max_new_tokens)
    with progress_bar(visible=team.leads) as progress:
        trained = train_model(
            Path(model), out, known, lessons, judging, lengths, settings, team, force=force, progress=progress
        )
    if team.leads:
        _say(trained, len(lessons), len(judging), as_json)


def _lessons(path: Path, task: LampTask, items: int) -> list[Lesson]:
    from personalization.lamp.train import Lesson

    questions = QuestionFile(path, task)
    golds = all_gold_outputs(questions, None)
    return [Lesson(one, golds[one.id]) for one in with_first_items(questions, None, items, own_adapter=False)]


def _say(trained: Trained, questions: int, judges: int, as_json: bool) -> None:
    report = trained.report
    # The gain is a likelihood of the gold outputs; the loss is more familiar.
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
