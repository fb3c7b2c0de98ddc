"""`cogenesis rspg feedback`: scores a model's answers with a retriever's top-ranked items in the prompt."""

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
from personalization.lamp.metrics import gain
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import all_gold_outputs, with_first_items
from personalization.lamp.tasks import find_task
from personalization.retrievers.feedback import Answer, write_retriever_feedback


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
    num_retrieved: NumRetrievedOption = 1,
    limit: LimitOption = None,
    where: ShardedRunnerOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer each question with a retriever's top-ranked items in the prompt, and write each answer's score.

    Run the command for each retriever of the pool, on questions merged with its ranking; use `-k 0` for no retriever.
    `rspg data` combines the directories. An interrupted run resumes.

    Example: cogenesis rspg feedback --task LaMP-5 -q merged-bm25.json -m flan-t5 -k 4 -o pool/bm25
    """
    found = QuestionFile(questions, find_task(task))
    golds = all_gold_outputs(found, limit)
    asked = with_first_items(found, limit, num_retrieved, own_adapter=who.adapters is not None)
    answers = who.answers(found.task, asked, out, where, force=force, keep_prompts=True)
    if answers is None:
        say_incomplete(out, as_json)
        return
    worth = {
        identity: Answer(answer.prompt, answer.output, gain(found.task, golds[identity], answer.output))
        for identity, answer in answers.items()
    }
    path = write_retriever_feedback(out, found.task, worth)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "complete": True, "feedback": str(path), "questions": len(worth)}))
    else:
        typer.echo(f"Feedback on {len(worth)} questions: {path}")
