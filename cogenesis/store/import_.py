"""`cogenesis store import`: imports a profile and past texts from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.lamp import TASK
from cogenesis.options.output import JsonOption, say
from cogenesis.options.store import DEFAULT_STORE, StoreOption
from cogenesis.terminal.counter import terminal_progress
from edge_runtime.store.profile_store import ProfileStore


def import_file(
    file: Annotated[
        Path,
        typer.Argument(help="Request file, user file, LaMP questions or CoGenesis records (JSON).", show_default=False),
    ],
    task: Annotated[str | None, TASK] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="ID",
            help="User whose texts to import, if the file has several.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Import a profile and past texts from a file; existing texts stay in the store.

    Examples:
      cogenesis store import examples/user/user.json

      cogenesis store import LaMP_5/dev_questions.json --task LaMP-5 --user 12
    """
    with ProfileStore(store) as opened, terminal_progress("Importing") as progress:
        done = opened.import_file(file, task=task, user=user, progress=progress)
    profile = "profile set" if done.profile else "profile unchanged"
    say(
        {"added": done.added, "known": done.known, "profile": done.profile, "store": str(store)},
        f"Past texts: {done.added} added, {done.known} known before; {profile}: {store}",
        as_json,
    )
