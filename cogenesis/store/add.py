"""`cogenesis store add`: adds a past text."""

from __future__ import annotations

from typing import Annotated

from cogenesis.options.expand import expand
from cogenesis.options.output import JsonOption, say
from cogenesis.options.store import DEFAULT_STORE, TITLE, PastText, StoreOption
from edge_runtime.errors import RequestError
from edge_runtime.store.profile_store import ProfileStore


@expand
def add(
    title: Annotated[str, TITLE],
    *,
    past: PastText,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Add a past text to the store.

    Example: cogenesis store add --title "A note to Oskar" --text "The sea was calm." --date 2024-05-01
    """
    content = past.content()
    if content is None:
        raise RequestError("There is no text to add. Give --text or --file.")
    with ProfileStore(store) as opened:
        item_id = opened.add(title, content, past.date)
    say({"id": item_id}, f"Added as {item_id}.", as_json)
