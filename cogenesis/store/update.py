"""`cogenesis store update`: changes a past text."""

from __future__ import annotations

from typing import Annotated

import typer

from cogenesis.options.expand import expand
from cogenesis.options.output import JsonOption, say
from cogenesis.options.store import DEFAULT_STORE, TITLE, PastText, StoreOption
from edge_runtime.errors import RequestError
from edge_runtime.store.profile_store import ProfileStore


@expand
def update(
    item_id: Annotated[int, typer.Argument(metavar="ID", help="ID, as `show` lists it.", show_default=False)],
    title: Annotated[str | None, TITLE] = None,
    *,
    past: PastText,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Change a past text; options that are not given leave their part unchanged.

    Example: cogenesis store update 3 --date 2024-02-29
    """
    content = past.content()
    if title is None and content is None and past.date is None:
        raise RequestError("There is nothing to change. Give --title, --text, --file or --date.")
    with ProfileStore(store) as opened:
        opened.update(item_id, title=title, text=content, date=past.date)
    say({"id": item_id}, f"Changed {item_id}.", as_json)
