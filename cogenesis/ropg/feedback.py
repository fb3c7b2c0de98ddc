"""`cogenesis ropg feedback`: measures how much each profile item, alone in the prompt, helps the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.answering import PersonalAnswererOptions, say_incomplete
from cogenesis.options.expand import expand
from cogenesis.options.lamp import LimitOption, ProfileSizeOption, QuestionsOption, TaskOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.runner import ShardedRunnerOptions
from personalization.lamp.metrics import gain
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import all_gold_outputs, with_each_item
from personalization.lamp.tasks import find_task
from personalization.retrievers.feedback import write_item_feedback

FEEDBACK_NAME = "feedback.json"


@expand
def feedback(
    task: TaskOption,
    questions: QuestionsOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory for the feedback and the progress.", show_default=False),
    ],
    *,
    who: PersonalAnswererOptions,
    profile_size: ProfileSizeOption = 20,
    limit: LimitOption = None,
    where: ShardedRunnerOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer each question once per profile item, with only that item in the prompt, and write each answer's score.

    The file is training data for `ropg train-kd` and `train-rl`. The score is the answer's accuracy or ROUGE-1; for a
    rating, it is the distance from the worst possible rating. An interrupted run resumes.

    Example: cogenesis ropg feedback --task LaMP-5 -q merged.json -m flan-t5 -o item-feedback --shard 2/4
    """
    found = QuestionFile(questions, find_task(task))
    golds = all_gold_outputs(found, limit)
    asked = with_each_item(found, limit, profile_size, own_adapter=who.adapters is not None)
    answers = who.answers(found.task, asked, out, where, force=force)
    if answers is None:
        say_incomplete(out, as_json)
        return
    gains = {one.key: gain(found.task, golds[one.id], answers[one.key].output) for one in asked}
    path = out / FEEDBACK_NAME
    write_item_feedback(path, found.task, gains)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "complete": True, "feedback": str(path), "items": len(gains)}))
    else:
        typer.echo(f"Feedback on {len(gains)} items: {path}")
