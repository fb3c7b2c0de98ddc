"""`cogenesis store profile`: shows or replaces the profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption, say
from cogenesis.options.store import DEFAULT_STORE, FILE, StoreOption, text_or_file
from edge_runtime.store.profile_store import ProfileStore


def profile(
    text: Annotated[
        str | None, typer.Argument(help="New profile. Default: show the profile.", show_default=False)
    ] = None,
    file: Annotated[Path | None, FILE] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show or replace the profile.

    Example: cogenesis store profile "Name: Ada, lighthouse keeper"
    """
    content = text_or_file(text, file)
    with ProfileStore(store) as opened:
        if content is not None:
            opened.set_profile(content)
        current = opened.profile
    say({"profile": current}, current or "(no profile)", as_json)
