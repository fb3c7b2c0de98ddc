"""`cogenesis lamp evaluate`: answers LaMP's questions with a model or a bundle, and scores the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.answering import PersonalAnswererOptions, say_incomplete
from cogenesis.options.expand import expand
from cogenesis.options.lamp import LimitOption, NumRetrievedOption, QuestionsOption, TaskOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.runner import ShardedRunnerOptions
from personalization.lamp.metrics import mean_scores
from personalization.lamp.outputs import write_outputs
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import gold_outputs, with_first_items
from personalization.lamp.tasks import find_task

PREDICTIONS_NAME = "predictions.json"


@expand
def evaluate(
    task: TaskOption,
    questions: QuestionsOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory for the answers and the progress.", show_default=False),
    ],
    *,
    who: PersonalAnswererOptions,
    num_retrieved: NumRetrievedOption = 1,
    limit: LimitOption = None,
    where: ShardedRunnerOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer questions with profile items in the prompt, and write the answers as LaMP's predictions.

    The model may be the base model, fine-tuned (`lamp train`), or used with each user's adapter. A prompt shows the
    first items of the profile; in a file from `lamp merge` these are the best-ranked. If the questions have gold
    outputs, the command prints the scores. An interrupted run resumes.

    Examples:
      cogenesis lamp evaluate --task LaMP-5 -q merged.json -m flan-t5 -k 4 -o answers

      cogenesis lamp evaluate --task LaMP-5 -q merged.json -b my-bundle -k 0 -o answers-alone
    """
    found = QuestionFile(questions, find_task(task))
    asked = with_first_items(found, limit, num_retrieved, own_adapter=who.adapters is not None)
    answers = who.answers(found.task, asked, out, where, force=force)
    if answers is None:
        say_incomplete(out, as_json)
        return
    predictions = out / PREDICTIONS_NAME
    write_outputs(predictions, found.task, {identity: answer.output for identity, answer in answers.items()})
    golds = gold_outputs(found, limit)
    scores = {}
    if len(golds) == len(answers):
        scores = mean_scores(found.task, [(gold, answers[identity].output) for identity, gold in golds.items()])
    if as_json:
        body = {"out": str(out), "complete": True, "predictions": str(predictions), "questions": len(answers)}
        typer.echo(json.dumps({**body, "scores": scores}))
        return
    typer.echo(f"{len(answers)} answers: {predictions}")
    for name, value in scores.items():
        typer.echo(f"{name}: {value:.4f}")
