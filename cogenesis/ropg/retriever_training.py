"""Shared options of `train-kd` and `train-rl`, and the training itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.lamp import (
    ENCODER,
    WHOSE,
    DevQuestionsOption,
    MetricOption,
    ProfileSizeOption,
    QuestionsOption,
    TaskOption,
    UseDateOption,
)
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.training import TrainingOptions, both_or_none, say_trained, team_on
from cogenesis.terminal.progress_bar import progress_bar
from personalization.lamp.questions import QuestionFile
from personalization.lamp.tasks import find_task
from personalization.models.libraries import prepare_command
from personalization.retrievers.examples import RetrieverExamples, retriever_examples
from personalization.retrievers.feedback import read_item_feedback

if TYPE_CHECKING:
    from personalization.training.settings import TuningSettings


@dataclass(frozen=True, kw_only=True)
class LessonOptions:
    """A retriever's training data, initial encoder and output directory."""

    task: TaskOption
    questions: QuestionsOption
    feedback: Annotated[
        Path,
        typer.Option(
            help="Scores of the profile items, from `ropg feedback`.", rich_help_panel=WHOSE, show_default=False
        ),
    ]
    encoder: Annotated[Path, ENCODER]
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the trained encoder to write.", show_default=False)
    ]
    dev_questions: DevQuestionsOption = None
    dev_feedback: Annotated[
        Path | None,
        typer.Option(help="Scores of the profile items of --dev-questions.", rich_help_panel=WHOSE, show_default=False),
    ] = None
    metric: MetricOption = None
    profile_size: ProfileSizeOption = 20
    use_date: UseDateOption = False
    force: ForceOption = False
    as_json: JsonOption = False

    def examples(self, questions: Path, feedback: Path) -> RetrieverExamples:
        """Read examples for training or evaluation.

        Raises:
            DataError: a file can't be used.
        """
        found = QuestionFile(questions, find_task(self.task))
        given = read_item_feedback(feedback, self.metric)
        return retriever_examples(found, given, most=self.profile_size, use_date=self.use_date)


def train(method: str, lesson: LessonOptions, settings: TuningSettings, training: TrainingOptions) -> None:
    """Train a retriever and print the result.

    Args:
        method: "kd" or "rl".
        lesson: training data, initial encoder and output directory.
        settings: settings of the training.
        training: options that include the device.

    Raises:
        CogenesisError: files or settings can't be used.
    """
    both_or_none(lesson.dev_questions, lesson.dev_feedback, "--dev-questions and --dev-feedback")
    prepare_command()
    from personalization.retrievers.ropg import Method, train_retriever

    learned = lesson.examples(lesson.questions, lesson.feedback)
    judging = None
    if lesson.dev_questions is not None and lesson.dev_feedback is not None:
        judging = lesson.examples(lesson.dev_questions, lesson.dev_feedback)
    team = team_on(training.device)
    with progress_bar(visible=team.leads) as progress:
        trained = train_retriever(
            lesson.encoder,
            lesson.out,
            learned.examples,
            () if judging is None else judging.examples,
            Method(method),
            settings,
            team,
            force=lesson.force,
            progress=progress,
        )
    numbers: dict[str, Any] = {"questions": len(learned.examples), "without_enough_feedback": learned.skipped}
    if judging is not None:
        numbers["dev_questions"] = len(judging.examples)
    say_trained(trained, team, numbers, lesson.as_json)
