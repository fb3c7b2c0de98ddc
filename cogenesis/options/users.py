"""Options for the users whose adapters are trained or measured, and for the base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.lamp import QUESTIONS, TASK, WHOSE, LimitOption
from personalization.errors import DataError, SettingsError, listed
from personalization.lamp.tasks import LAMP_TASKS, find_task
from personalization.models.load_errors import model_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personalization.adapters.trained_adapter import BaseIdentity
    from personalization.users.data import UserFile

BaseModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="DIR",
        help="The base model: a directory in Hugging Face format.",
        show_default=False,
    ),
]
ADAPTERS = typer.Option(
    "--adapters",
    "-a",
    metavar="DIR",
    help="Directory of users' adapters from `adapter train`; for a bundle, its folder `adapters`.",
    rich_help_panel=WHOSE,
    show_default=False,
)


@dataclass(frozen=True, kw_only=True)
class UsersOptions:
    """The users whose data a command reads."""

    records: Annotated[
        Path | None,
        typer.Option(
            help="CoGenesis records (JSON). Training uses their past texts.", rich_help_panel=WHOSE, show_default=False
        ),
    ] = None
    questions: Annotated[Path | None, QUESTIONS] = None
    task: Annotated[str | None, TASK] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Use only the user with this ID; may be given again.",
            rich_help_panel=WHOSE,
            show_default=False,
        ),
    ] = None
    limit: LimitOption = None

    def read(self, *, outputs: Path | None = None, seed: int = 0) -> UserFile:
        """Read the users that the options name.

        Raises:
            SettingsError: the options contradict each other, or name a task that does not exist.
            DataError: the file can't be used, or lacks one of the users.
        """
        from personalization.lamp.users import read_lamp
        from personalization.users.cogenesis_records import read_records

        if (self.records is None) == (self.questions is None):
            raise SettingsError("Give either --records FILE, or --task LaMP-N and --questions FILE.")
        if self.records is not None:
            if self.task is not None or outputs is not None:
                raise SettingsError("--task and --outputs belong to --questions. Leave them out for --records.")
            return _chosen(read_records(self.records), self.records, self.only, self.limit)
        assert self.questions is not None
        if self.task is None:
            raise SettingsError(f"--questions needs a --task. Use one of: {', '.join(LAMP_TASKS)}.")
        users = read_lamp(self.questions, find_task(self.task), outputs=outputs, seed=seed)
        return _chosen(users, self.questions, self.only, self.limit)


@model_errors()
def base_of(model: str | Path) -> tuple[Path, BaseIdentity]:
    """Return a model directory's absolute path and its identity; this hashes the weights.

    Raises:
        ModelError: the model does not exist, or its files are damaged.
        SettingsError: the model is a GGUF file.
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
