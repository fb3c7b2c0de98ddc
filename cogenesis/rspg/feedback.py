"""`cogenesis rspg feedback`: what the items that a retriever ranks first are worth to the model that is shown them."""

from __future__ import annotations

import json

import typer

from cogenesis.options.answering import (
    BATCH,
    MAX_LENGTH,
    MAX_NEW_TOKENS,
    ONE_LINE,
    THREADS,
    AdaptersOption,
    AnswerOptions,
    BackendOption,
    BatchOption,
    BeamsOption,
    BundleOption,
    DeviceOption,
    ForceOption,
    ItemsOption,
    MaxLengthOption,
    MaxNewTokensOption,
    MergedOption,
    ModelOption,
    OneLineOption,
    OutOption,
    QuestionLimitOption,
    ShardOption,
    TaskOption,
    say_incomplete,
)
from cogenesis.options.users import AddressOption, JsonOption, RunnerOption, ThreadsOption, WorkersOption
from personalization.jobs.runners import RunnerName
from personalization.lamp.metrics import gain
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import all_gold_outputs, with_first_items
from personalization.lamp.tasks import find_task
from personalization.models.device import Device
from personalization.retrievers.feedback import Answer, write_retriever_feedback


def feedback(
    task: TaskOption,
    questions: MergedOption,
    out: OutOption,
    model: ModelOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    adapters: AdaptersOption = None,
    device: DeviceOption = Device.CPU,
    items: ItemsOption = 1,
    max_length: MaxLengthOption = MAX_LENGTH,
    max_new_tokens: MaxNewTokensOption = MAX_NEW_TOKENS,
    beams: BeamsOption = None,
    batch: BatchOption = BATCH,
    one_line: OneLineOption = ONE_LINE,
    limit: QuestionLimitOption = None,
    shard: ShardOption = "1/1",
    threads: ThreadsOption = THREADS,
    runner: RunnerOption = RunnerName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have each question answered with the items that a retriever ranks first, and write what that was worth.

    Run it for each retriever of the pool, on questions that were merged with its ranking, and with `-k 0` for none;
    `rspg data` puts the folders together. A run that was interrupted goes on where it was.

    Example: cogenesis rspg feedback --task LaMP-5 -q merged-bm25.json -m flan-t5 -k 4 -o pool/bm25
    """
    how = AnswerOptions(
        model=model,
        bundle=bundle,
        backend=backend,
        adapters=adapters,
        device=device,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        beams=beams,
        batch=batch,
        one_line=one_line,
        shard=shard,
        threads=threads,
        runner=runner,
        address=address,
        workers=workers,
        force=force,
    )
    found = QuestionFile(questions, find_task(task))
    golds = all_gold_outputs(found, limit)
    asked = with_first_items(found, limit, items, own_adapter=adapters is not None)
    answers = how.answers(found.task, asked, out, keep_prompts=True)
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
