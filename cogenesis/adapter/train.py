"""`cogenesis adapter train`: one adapter per user, from what they wrote."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.users import (
    WHOSE,
    AddressOption,
    JsonOption,
    LimitOption,
    ModelOption,
    QuestionsOption,
    RecordsOption,
    RunnerOption,
    TaskOption,
    ThreadsOption,
    UserOption,
    WorkersOption,
    base_of,
    read_users,
)
from personalization.adapters.settings import AdapterSettings
from personalization.errors import TrainingError, listed
from personalization.jobs.runners import RunnerName, runner_of
from personalization.models.libraries import prepare_command
from personalization.training.rate_schedule import RateSchedule

if TYPE_CHECKING:
    from personalization.adapters.train_users import Outcome

HOW = "How to train"
_DEFAULTS = AdapterSettings()


def train(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of users' directories.")],
    records: RecordsOption = None,
    questions: QuestionsOption = None,
    task: TaskOption = None,
    user: UserOption = None,
    limit: LimitOption = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Only the I-th of N parts of the users.", rich_help_panel=WHOSE)
    ] = "1/1",
    with_context: Annotated[
        bool,
        typer.Option("--with-context", help="Train with profile and other items in the prompt.", rich_help_panel=HOW),
    ] = False,
    rank: Annotated[int, typer.Option(help="Of the adapter's matrices.", rich_help_panel=HOW)] = _DEFAULTS.rank,
    alpha: Annotated[
        float, typer.Option(help="The adapter's scale is alpha / rank.", rich_help_panel=HOW)
    ] = _DEFAULTS.alpha,
    dropout: Annotated[
        float, typer.Option(help="Share of the adapter's inputs that is dropped.", rich_help_panel=HOW)
    ] = _DEFAULTS.dropout,
    targets: Annotated[
        str, typer.Option(help="qv, attention, all, or names of layers, by commas.", rich_help_panel=HOW)
    ] = _DEFAULTS.targets,
    epochs: Annotated[int, typer.Option(help="Passes over a user's items.", rich_help_panel=HOW)] = _DEFAULTS.epochs,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, instead of --epochs.", rich_help_panel=HOW, show_default=False)
    ] = None,
    rate: Annotated[float, typer.Option(help="Highest learning rate.", rich_help_panel=HOW)] = _DEFAULTS.rate,
    schedule: Annotated[
        RateSchedule, typer.Option(help="How the rate falls after the warm-up.", rich_help_panel=HOW)
    ] = _DEFAULTS.schedule,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the rate rises.", rich_help_panel=HOW)
    ] = _DEFAULTS.warmup,
    batch: Annotated[int, typer.Option(help="Items of an optimizer step.", rich_help_panel=HOW)] = _DEFAULTS.batch,
    pass_tokens: Annotated[
        int, typer.Option(help="Most tokens through the model at once; bounds the memory.", rich_help_panel=HOW)
    ] = _DEFAULTS.pass_tokens,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=HOW)] = _DEFAULTS.weight_decay,
    clip: Annotated[
        float, typer.Option(help="Highest norm of a gradient; 0: any.", rich_help_panel=HOW)
    ] = _DEFAULTS.clip,
    held_out: Annotated[
        float,
        typer.Option(help="Share of a user's items that tells when to stop, from ten items on.", rich_help_panel=HOW),
    ] = _DEFAULTS.held_out,
    patience: Annotated[
        int, typer.Option(help="Epochs without a gain on those until training stops.", rich_help_panel=HOW)
    ] = _DEFAULTS.patience,
    max_length: Annotated[
        int, typer.Option(help="Most tokens of prompt and answer; longer items are cut.", rich_help_panel=HOW)
    ] = _DEFAULTS.max_length,
    seed: Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=HOW)] = _DEFAULTS.seed,
    threads: ThreadsOption = _DEFAULTS.threads,
    runner: RunnerOption = RunnerName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Train those again that were trained with other settings or on another base."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train one LoRA adapter per user, in PEFT's format.

    Users who are done are not trained again, so a run that was interrupted goes on where it was; those who have written
    more since are. A user who can't be trained fails alone: the command ends with code 9 and names them.

    Examples:
      cogenesis adapter train --model models/smollm2 --records users.json --out adapters

      cogenesis adapter train -m models/smollm2 --task LaMP-5 --questions dev_questions.json -o adapters --shard 2/4
    """
    prepare_command()
    settings = AdapterSettings(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        targets=targets,
        epochs=epochs,
        steps=steps,
        rate=rate,
        schedule=schedule,
        warmup=warmup,
        batch=batch,
        pass_tokens=pass_tokens,
        weight_decay=weight_decay,
        clip=clip,
        held_out=held_out,
        patience=patience,
        max_length=max_length,
        with_context=with_context,
        seed=seed,
        threads=threads,
    )
    where = runner_of(runner, address, workers, threads)
    from cogenesis.terminal.tables import ProgressLines, print_table
    from personalization.adapters.train_users import train_users, users_of, write_summary
    from personalization.adapters.worker import WorkerSpec
    from personalization.jobs.shard import Shard

    part = Shard.parse(shard)
    users = users_of(part, read_users(records, questions, task, seed=seed, names=user, limit=limit))
    directory, base = base_of(model)
    lines = ProgressLines()

    def report(outcome: Outcome, done: int, total: int) -> None:
        lines(outcome.user, _in_words(outcome), done, total, worked=outcome.seconds is not None)

    spec = WorkerSpec(directory, base, out.absolute(), settings)
    outcomes = train_users(users, spec, where, force=force, report=report)
    summary = out / part.summary_name
    write_summary(summary, outcomes, base, settings)
    if as_json:
        counts = Counter(outcome.status for outcome in outcomes)
        body = {
            "out": str(out),
            "summary": str(summary),
            **{status: counts[status] for status in ("trained", "kept", "failed")},
            "users": [outcome.document() for outcome in outcomes],
        }
        typer.echo(json.dumps(body, ensure_ascii=False))
    elif outcomes:
        print_table([_row(outcome) for outcome in outcomes])
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        first = failed[0]
        raise TrainingError(
            f"{len(failed)} of {len(outcomes)} users failed: {listed([each.user for each in failed])}. "
            f"{summary} says why of each; {first.user}: {first.error}"
        )


def _in_words(outcome: Outcome) -> str:
    if outcome.report is None:
        return f"failed. {outcome.error}"
    report = outcome.report
    loss = f"loss {report.before:.3f} to {report.after:.3f} ({report.judged_by})"
    return f"{outcome.status}, {loss}" + ("" if outcome.seconds is None else f", {outcome.seconds:.0f} s")


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"user": outcome.user, "status": outcome.status}
    report = outcome.report
    if report is None:
        return row
    return row | {
        "items": report.examples,
        "held out": report.held_out,
        "cut": report.cut,
        "skipped": report.skipped,
        "steps": report.steps,
        "loss of": report.judged_by,
        "before": report.before,
        "after": report.after,
        "change": report.after - report.before,
        "seconds": None if outcome.seconds is None else round(outcome.seconds),
    }
