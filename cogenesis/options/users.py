"""Options that the commands about adapters share: the base, whose data, and where to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personalization.errors import DataError, SettingsError, listed
from personalization.jobs.runners import RunnerName
from personalization.lamp.tasks import LAMP_TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personalization.adapters.trained_adapter import BaseIdentity
    from personalization.users.data import UserFile

WHOSE, WHERE = "Whose data", "Where to run"

ModelOption = Annotated[Path, typer.Option("--model", "-m", help="The base: a directory in Hugging Face format.")]
RecordsOption = Annotated[
    Path | None,
    typer.Option(help="CoGenesis records (JSON); past texts are learnt.", rich_help_panel=WHOSE, show_default=False),
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(help="A questions file of LaMP; name its --task.", rich_help_panel=WHOSE, show_default=False),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        help="Of the questions: LaMP-1 to LaMP-7.", metavar="LaMP-N", rich_help_panel=WHOSE, show_default=False
    ),
]
UserOption = Annotated[
    list[str] | None,
    typer.Option("--user", help="Only this user; may be given again.", rich_help_panel=WHOSE, show_default=False),
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="Only the first so many users of the file.", rich_help_panel=WHOSE, show_default=False),
]
ThreadsOption = Annotated[
    int,
    typer.Option(min=1, help="Of the processor, for a worker. Another number gives other bits.", rich_help_panel=WHERE),
]
RunnerOption = Annotated[
    RunnerName, typer.Option(help="This process, or a Ray cluster; the results are the same.", rich_help_panel=WHERE)
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Of a Ray cluster; without it one is started here.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Workers on the cluster.", rich_help_panel=WHERE, show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def read_users(
    records: Path | None,
    questions: Path | None,
    task: str | None,
    *,
    outputs: Path | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    limit: int | None = None,
) -> UserFile:
    """Read the users that the options name.

    Raises:
        SettingsError: the options contradict each other, or name a task that does not exist.
        DataError: the file can't be used, or lacks one of the users.
    """
    from personalization.lamp.users import read_lamp
    from personalization.users.cogenesis_records import read_records

    if (records is None) == (questions is None):
        raise SettingsError("Give either --records FILE, or --task LaMP-N and --questions FILE.")
    if records is not None:
        if task is not None or outputs is not None:
            raise SettingsError("--task and --outputs belong to --questions. Leave them out for --records.")
        return _chosen(read_records(records), records, names, limit)
    assert questions is not None
    if task is None:
        raise SettingsError(f"--questions needs a --task. Use one of: {', '.join(LAMP_TASKS)}.")
    return _chosen(read_lamp(questions, find_task(task), outputs=outputs, seed=seed), questions, names, limit)


def base_of(model: Path) -> tuple[Path, BaseIdentity]:
    """A model directory's absolute path, and its identity (hashes the weights).

    Raises:
        ExportError: there is no model.
        SettingsError: it is a GGUF file.
    """
    from export.model.hf_source import hf_provenance
    from export.model.locate import locate_model
    from personalization.adapters.trained_adapter import BaseIdentity

    path = locate_model(model)
    if path.is_file():
        raise SettingsError(
            f"Training needs a model directory, and this is a GGUF file: {path}. Write one from it: "
            f"`cogenesis export hf --model {model} --out DIR`. Adapters then fit bundles of both."
        )
    origin = hf_provenance(path)
    return path.absolute(), BaseIdentity(origin.sha256, origin.name)


def _chosen(users: UserFile, file: Path, names: Sequence[str] | None, limit: int | None) -> UserFile:
    from personalization.users.data import UserFile

    if not users.users and not users.unusable:
        raise DataError(f"The file has no users: {file}.")
    if names:
        missing = [name for name in names if name not in users.names]
        if missing:
            raise DataError(f"The file has no such users: {file}, {listed(missing)}.")
        users = UserFile(
            tuple(user for user in users.users if user.user in names),
            tuple(user for user in users.unusable if user.user in names),
            users.questions,
        )
    if limit is None:
        return users
    return UserFile(users.users[:limit], users.unusable if limit > len(users.users) else (), users.questions)
