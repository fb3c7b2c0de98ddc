"""`cogenesis lamp evaluate`: has LaMP's questions answered by a model or a bundle, and says how well."""

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
from personalization.lamp.metrics import mean_scores
from personalization.lamp.outputs import write_outputs
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import gold_outputs, with_first_items
from personalization.lamp.tasks import find_task
from personalization.models.device import Device

PREDICTIONS_NAME = "predictions.json"


def evaluate(
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
    """Answer questions with profile items in the prompt, and write the answers as LaMP's predictions.

    The model may be as it is, fine-tuned (`lamp train`), or with each user's adapter. The first items of each profile
    are shown: those that are ranked first, in a file of `lamp merge`. Where the questions have gold outputs, the scores
    are printed. A run that was interrupted goes on where it was.

    Examples:
      cogenesis lamp evaluate --task LaMP-5 -q merged.json -m flan-t5 -k 4 -o answers

      cogenesis lamp evaluate --task LaMP-5 -q merged.json -b my-bundle -k 0 -o answers-alone
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
    asked = with_first_items(found, limit, items, own_adapter=adapters is not None)
    answers = how.answers(found.task, asked, out)
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
