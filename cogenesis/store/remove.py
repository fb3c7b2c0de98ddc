"""`cogenesis store remove`: removes past texts."""

from __future__ import annotations

from typing import Annotated

import typer

from cogenesis.options.output import JsonOption, say
from cogenesis.options.store import DEFAULT_STORE, StoreOption
from edge_runtime.store.profile_store import ProfileStore


def remove(
    ids: Annotated[list[int], typer.Argument(help="IDs, as `show` lists them.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove past texts from the store: either all the given IDs, or none if one is unknown.

    Example: cogenesis store remove 3 7
    """
    with ProfileStore(store) as opened:
        opened.remove(*ids)
    say({"removed": sorted(set(ids))}, f"Removed {', '.join(str(i) for i in sorted(set(ids)))}.", as_json)
