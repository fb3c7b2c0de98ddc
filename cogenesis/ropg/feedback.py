"""`cogenesis ropg feedback`: what each profile item is worth to a model that is shown that item alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cogenesis.options.answering import (
    BATCH,
    HOW,
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
from personalization.lamp.shown_items import all_gold_outputs, with_each_item
from personalization.lamp.tasks import find_task
from personalization.models.device import Device
from personalization.retrievers.feedback import write_item_feedback

FEEDBACK_NAME = "feedback.json"

ProfileSizeOption = Annotated[
    int, typer.Option(min=1, help="Items of a profile to try: those that are ranked first.", rich_help_panel=HOW)
]


def feedback(
    task: TaskOption,
    questions: MergedOption,
    out: OutOption,
    model: ModelOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    adapters: AdaptersOption = None,
    device: DeviceOption = Device.CPU,
    profile_size: ProfileSizeOption = 20,
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
    """Have each question answered once for each profile item, with that item alone, and write what that was worth.

    `ropg train-kd` and `train-rl` learn from the file. An item is worth the accuracy of the answer, or its ROUGE-1, or
    of a score how far it is from the worst that it could have been. A run that was interrupted goes on where it was.

    Example: cogenesis ropg feedback --task LaMP-5 -q merged.json -m flan-t5 -o item-feedback --shard 2/4
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
    asked = with_each_item(found, limit, profile_size, own_adapter=adapters is not None)
    answers = how.answers(found.task, asked, out)
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
