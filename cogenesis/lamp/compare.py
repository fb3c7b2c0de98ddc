"""`cogenesis lamp compare`: what a profile in the prompt is worth, from questions to a table in one command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.answering import (
    BATCH,
    HOW,
    MAX_LENGTH,
    MAX_NEW_TOKENS,
    ONE_LINE,
    THREADS,
    AnswerOptions,
    BackendOption,
    BatchOption,
    BeamsOption,
    BundleOption,
    DeviceOption,
    ForceOption,
    MaxLengthOption,
    MaxNewTokensOption,
    ModelOption,
    OneLineOption,
    OutOption,
    QuestionLimitOption,
    TaskOption,
)
from cogenesis.options.users import AddressOption, JsonOption, RunnerOption, ThreadsOption, WorkersOption
from personalization.jobs.runners import RunnerName
from personalization.lamp.answers import Answered, Asked
from personalization.lamp.compare import CompareSpec, markdown_table, write_comparison
from personalization.lamp.compare import compare as compare_systems
from personalization.lamp.rankers import RankerName
from personalization.lamp.tasks import find_task
from personalization.models.device import Device


def compare(
    task: TaskOption,
    questions: Annotated[Path, typer.Option("--questions", "-q", help="A questions file of LaMP.")],
    outputs: Annotated[Path, typer.Option(help="Its gold outputs.")],
    out: OutOption,
    model: ModelOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    device: DeviceOption = Device.CPU,
    ranker: Annotated[
        list[RankerName],
        typer.Option(help="Of the profiles: bm25, recency or random; may be given again.", rich_help_panel=HOW),
    ] = [RankerName.BM25],  # noqa: B006 (typer copies it)
    items: Annotated[
        list[int],
        typer.Option("--num-retrieved", "-k", min=1, help="In a prompt; may be given again.", rich_help_panel=HOW),
    ] = [1, 2, 4],  # noqa: B006
    max_length: MaxLengthOption = MAX_LENGTH,
    max_new_tokens: MaxNewTokensOption = MAX_NEW_TOKENS,
    beams: BeamsOption = None,
    batch: BatchOption = BATCH,
    one_line: OneLineOption = ONE_LINE,
    limit: QuestionLimitOption = None,
    threads: ThreadsOption = THREADS,
    runner: RunnerOption = RunnerName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer questions without a profile and with 1, 2 and 4 of its items, and test what the items change.

    Ranks, merges, answers and scores; each score comes with its change, the 95 % interval of that, and the p-value of a
    paired randomization test. A run that was interrupted goes on where it was.

    Example:
      cogenesis lamp compare --task LaMP-5 -q dev_questions.json --outputs dev_outputs.json -b my-bundle -o compared
    """
    how = AnswerOptions(
        model=model,
        bundle=bundle,
        backend=backend,
        adapters=None,
        device=device,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        beams=beams,
        batch=batch,
        one_line=one_line,
        shard="1/1",
        threads=threads,
        runner=runner,
        address=address,
        workers=workers,
        force=force,
    )
    known = find_task(task)
    spec = CompareSpec(known, questions, outputs, limit, list(dict.fromkeys(ranker)), sorted(set(items)), out)

    def answer(asked: Sequence[Asked], directory: Path) -> Mapping[str, Answered]:
        answers = how.answers(known, asked, directory)
        assert answers is not None  # there is one shard
        return answers

    compared = compare_systems(spec, answer)
    write_comparison(spec, compared)
    if as_json:
        body = {"out": str(out), "task": known.name, "systems": [one.document() for one in compared]}
        typer.echo(json.dumps(body))
    else:
        typer.echo(markdown_table(compared), nl=False)
