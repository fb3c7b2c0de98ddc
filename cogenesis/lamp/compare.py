"""`cogenesis lamp compare`: measures the gain from profile items in the prompt, from questions to a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.answering import AnswererOptions
from cogenesis.options.expand import expand
from cogenesis.options.lamp import OUTPUTS, LimitOption, QuestionsOption, TaskOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.runner import RunnerOptions
from personalization.lamp.answers import Answered, Asked
from personalization.lamp.compare import CompareSpec, markdown_table, write_comparison
from personalization.lamp.compare import compare as compare_systems
from personalization.lamp.rankers import RankerName
from personalization.lamp.tasks import find_task


@expand
def compare(
    task: TaskOption,
    questions: QuestionsOption,
    outputs: Annotated[Path, OUTPUTS],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory for the table and the progress.", show_default=False),
    ],
    *,
    who: AnswererOptions,
    try_ranker: Annotated[
        list[RankerName],
        typer.Option(help="Ranker of the profiles: bm25, recency or random; may be given again."),
    ] = [RankerName.BM25],  # noqa: B006 (typer copies it)
    try_items: Annotated[
        list[int],
        typer.Option(min=1, help="Number of profile items in a prompt; may be given again."),
    ] = [1, 2, 4],  # noqa: B006
    limit: LimitOption = None,
    where: RunnerOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer questions with and without profile items in the prompt, and test the difference.

    The command ranks, merges, answers and scores. Each score comes with its change, the 95 % interval of the change,
    and the p-value of a paired randomization test. An interrupted run resumes.

    Example:
      cogenesis lamp compare --task LaMP-5 -q dev_questions.json --outputs dev_outputs.json -b my-bundle -o compared
    """
    known = find_task(task)
    spec = CompareSpec(known, questions, outputs, limit, list(dict.fromkeys(try_ranker)), sorted(set(try_items)), out)

    def answer(asked: Sequence[Asked], directory: Path) -> Mapping[str, Answered]:
        answers = who.answers(known, asked, directory, where, force=force)
        assert answers is not None  # there is only one shard
        return answers

    compared = compare_systems(spec, answer)
    write_comparison(spec, compared)
    if as_json:
        body = {"out": str(out), "task": known.name, "systems": [one.document() for one in compared]}
        typer.echo(json.dumps(body))
    else:
        typer.echo(markdown_table(compared), nl=False)
