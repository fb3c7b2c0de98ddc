"""`cogenesis adapter evaluate`: measures the gain of users' adapters on answers they were not trained on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.expand import expand
from cogenesis.options.lamp import OUTPUTS
from cogenesis.options.output import JsonOption
from cogenesis.options.runner import RunnerOptions
from cogenesis.options.training import MaxLengthOption
from cogenesis.options.users import ADAPTERS, BaseModelOption, UsersOptions, base_of
from personalization.errors import DataError, TrainingError, listed
from personalization.jobs.backlog import JobError
from personalization.jobs.run_jobs import run_jobs
from personalization.models.libraries import prepare_command

if TYPE_CHECKING:
    from personalization.adapters.evaluate import Judged


@expand
def evaluate(
    model: BaseModelOption,
    adapters: Annotated[Path, ADAPTERS],
    *,
    whose: UsersOptions,
    outputs: Annotated[Path | None, OUTPUTS] = None,
    task_alone: Annotated[
        bool,
        typer.Option(
            "--task-alone",
            help="Measure only with the task alone in the prompt. Default: also with profile and past texts, "
            "which takes most of the time.",
        ),
    ] = False,
    max_length: MaxLengthOption = 4096,
    where: RunnerOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure how likely users' own answers are with and without their adapter, in nats per token: less is better.

    The answers come from the records' conversations, or are LaMP's gold outputs; no adapter was trained on them. Each
    is scored with its task alone in the prompt, and with the user's profile and past texts. Users without an adapter
    are left out. The 95 % interval comes from a paired bootstrap over users.

    Example: cogenesis adapter evaluate --model models/smollm2 --adapters adapters --records users.json
    """
    prepare_command()
    runner = where.chosen()
    from cogenesis.terminal.tables import ProgressLines, print_table
    from edge_runtime.adapters.store import directory_name
    from personalization.adapters.evaluate import AdapterJudge, JudgeSpec, Questions, compare
    from personalization.adapters.trained_adapter import is_training_directory

    users = whose.read(outputs=outputs)
    asked = [
        Questions(data, users.questions[data.user])
        for data in users.users
        if data.user in users.questions and is_training_directory(adapters / directory_name(data.user))
    ]
    if not asked:
        raise DataError(
            f"There is nothing to score: no user of the file has both an adapter in {adapters} and an answer. "
            "Train some first, and give --outputs with --questions."
        )
    directory, base = base_of(model)
    judged: dict[str, Judged] = {}
    failed: dict[str, str] = {}
    lines = ProgressLines()
    spec = JudgeSpec(directory, base.sha256, adapters.absolute(), where.threads, max_length, not task_alone)
    with run_jobs(partial(AdapterJudge, spec), asked, runner) as results:
        for index, result in results:
            name = asked[index].data.user
            if isinstance(result, JobError):
                failed[name] = result.message
            else:
                judged[name] = result
            done = len(judged) + len(failed)
            lines(name, f"failed. {failed[name]}" if name in failed else "scored", done, len(asked), worked=True)
    scored = [(item.data.user, judged[item.data.user]) for item in asked if item.data.user in judged]
    summary = {
        condition: compare([found.likelihoods[condition] for _, found in scored]).document()
        for condition in (scored[0][1].likelihoods if scored else ())
    }
    if as_json:
        body = {"users": [_document(name, found) for name, found in scored], "summary": summary, "failed": failed}
        typer.echo(json.dumps(body, ensure_ascii=False))
    elif scored:
        print_table([_row(name, found) for name, found in scored])
        typer.echo("")
        print_table([{"": condition, **numbers} for condition, numbers in summary.items()])
    if failed:
        first, why = next(iter(failed.items()))
        raise TrainingError(f"{len(failed)} of {len(asked)} users failed: {listed(list(failed))}; {first}: {why}")


def _document(name: str, found: Judged) -> dict[str, Any]:
    nll = {condition: {"base": pair.base, "adapter": pair.adapter} for condition, pair in found.likelihoods.items()}
    return {"user": name, "tokens": found.tokens, "nll": nll}


def _row(name: str, found: Judged) -> dict[str, Any]:
    row: dict[str, Any] = {"user": name, "tokens": found.tokens}
    for condition, pair in found.likelihoods.items():
        numbers = {"base": pair.base, "adapter": pair.adapter, "change": pair.adapter - pair.base}
        row |= {f"{condition}: {kind}": number for kind, number in numbers.items()}
    return row
