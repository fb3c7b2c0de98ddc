"""`cogenesis adapter train`: trains one adapter per user on their own texts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.expand import expand
from cogenesis.options.lora import LoraOptions
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.runner import ShardedRunnerOptions
from cogenesis.options.training import HOW, MaxLengthOption, OptimizerOptions, WeightDecayOption
from cogenesis.options.users import BaseModelOption, UsersOptions, base_of
from personalization.adapters.settings import AdapterSettings
from personalization.errors import TrainingError, listed
from personalization.models.libraries import prepare_command

if TYPE_CHECKING:
    from personalization.adapters.train_users import Outcome

_DEFAULTS = AdapterSettings()
_OPTIMIZER = OptimizerOptions(
    epochs=_DEFAULTS.epochs,
    batch=_DEFAULTS.batch,
    rate=_DEFAULTS.rate,
    rate_schedule=_DEFAULTS.schedule,
    warmup=_DEFAULTS.warmup,
    clip=_DEFAULTS.clip,
    seed=_DEFAULTS.seed,
)


@expand
def train(
    model: BaseModelOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory to write, with a subdirectory for each user.", show_default=False),
    ],
    *,
    whose: UsersOptions,
    with_context: Annotated[
        bool,
        typer.Option(
            "--with-context", help="Train with the profile and other items in the prompt.", rich_help_panel=HOW
        ),
    ] = False,
    lora: LoraOptions,
    optimizer: OptimizerOptions = _OPTIMIZER,
    steps: Annotated[
        int | None,
        typer.Option(help="Number of optimizer steps, instead of --epochs.", rich_help_panel=HOW, show_default=False),
    ] = None,
    pass_tokens: Annotated[
        int, typer.Option(help="Maximum tokens per pass through the model. Limits the memory.", rich_help_panel=HOW)
    ] = _DEFAULTS.pass_tokens,
    weight_decay: WeightDecayOption = _DEFAULTS.weight_decay,
    held_out: Annotated[
        float,
        typer.Option(
            help="Fraction of a user's items that is held out to decide when to stop. Used from ten items on.",
            rich_help_panel=HOW,
        ),
    ] = _DEFAULTS.held_out,
    stop_after: Annotated[
        int,
        typer.Option(
            metavar="N", help="Stop after N epochs without improvement on the held-out items.", rich_help_panel=HOW
        ),
    ] = _DEFAULTS.patience,
    max_length: MaxLengthOption = _DEFAULTS.max_length,
    where: ShardedRunnerOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one LoRA adapter per user, in PEFT's format.

    An interrupted run resumes: finished users are trained again only if their texts changed. If a user fails, the
    others are still trained; the command then exits with code 9 and names the failed users.

    Examples:
      cogenesis adapter train --model models/smollm2 --records users.json --out adapters

      cogenesis adapter train -m models/smollm2 --task LaMP-5 --questions dev_questions.json -o adapters --shard 2/4
    """
    prepare_command()
    settings = AdapterSettings(
        **optimizer.settings(),
        **asdict(lora),
        steps=steps,
        pass_tokens=pass_tokens,
        weight_decay=weight_decay,
        held_out=held_out,
        patience=stop_after,
        max_length=max_length,
        with_context=with_context,
        threads=where.threads,
    )
    runner = where.chosen()
    from cogenesis.terminal.tables import ProgressLines, print_table
    from personalization.adapters.train_users import train_users, users_of, write_summary
    from personalization.adapters.worker import WorkerSpec

    part = where.part()
    users = users_of(part, whose.read(seed=optimizer.seed))
    directory, base = base_of(model)
    lines = ProgressLines()

    def report(outcome: Outcome, done: int, total: int) -> None:
        lines(outcome.user, _in_words(outcome), done, total, worked=outcome.seconds is not None)

    spec = WorkerSpec(directory, base, out.absolute(), settings)
    outcomes = train_users(users, spec, runner, force=force, report=report)
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
            f"{summary} gives the reasons; {first.user}: {first.error}"
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
