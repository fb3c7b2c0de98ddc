"""`cogenesis store search`: finds past texts on the device, by words, by meaning or by date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption
from cogenesis.options.retrieval import RETRIEVAL, RETRIEVER, ItemsOption
from cogenesis.options.store import DEFAULT_STORE, StoreOption
from cogenesis.terminal.counter import terminal_progress
from edge_runtime.errors import RequestError
from edge_runtime.retrieval.names import AUTO, BM25


def search(
    query: Annotated[str, typer.Argument(help="Topic of the texts to find.", show_default=False)],
    retriever: Annotated[str, RETRIEVER] = BM25,
    items: ItemsOption = 10,
    retrieval: Annotated[Path | None, RETRIEVAL] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Find past texts on this device, best first; nothing is sent.

    Examples:
      cogenesis store search "letter to the landlord"

      cogenesis store search "letter to the landlord" --retriever hybrid --retrieval encoders/minilm --json
    """
    from edge_runtime.retrieval.kit import open_retrieval_kit
    from edge_runtime.retrieval.search import StoreSearch
    from edge_runtime.store.profile_store import ProfileStore

    if retriever == AUTO:
        raise RequestError(f"'{AUTO}' needs prompts to choose from: use it with `cogenesis generate`.")
    with ProfileStore(store) as opened, terminal_progress("Embedding past texts") as progress:
        found = StoreSearch(opened, open_retrieval_kit(retrieval), progress).find(query, retriever, items)
    if as_json:
        listed = [
            {
                "id": one.item.id,
                "origin": one.item.origin,
                "score": one.score,
                "date": one.item.date,
                "title": one.item.title,
                "text": one.item.text,
            }
            for one in found
        ]
        typer.echo(json.dumps({"retriever": retriever, "items": listed}, ensure_ascii=False))
        return
    for one in found:
        score = "" if one.score is None else f"{one.score:.4g}"
        typer.echo(f"{one.item.id:>5}  {score:>8}  {one.item.date or '':10}  {one.item.title or one.item.text[:60]}")
