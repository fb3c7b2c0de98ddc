"""`cogenesis store search` and `store embed`: find past texts on the device, by words, by meaning or by date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.store import DEFAULT_STORE, AsJson, StoreFile
from cogenesis.terminal.counter import terminal_progress
from edge_runtime.errors import RequestError
from edge_runtime.retrieval.names import AUTO, BM25

RetrievalOption = Annotated[
    Path | None,
    typer.Option("--retrieval", metavar="DIR", help="An encoder's directory, or one with several and a selector."),
]
ItemsOption = Annotated[int, typer.Option("--items", "-k", min=1, help="Past texts to find.")]


def search(
    query: Annotated[str, typer.Argument(help="What the texts should be about.", show_default=False)],
    retriever: Annotated[
        str,
        typer.Option(
            help="bm25 (words), recency (date), an encoder's name (meaning), hybrid (words and meaning) or mixed (date "
            "and meaning)."
        ),
    ] = BM25,
    count: ItemsOption = 10,
    retrieval: RetrievalOption = None,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Find past texts, best first; nothing leaves the device.

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
        found = StoreSearch(opened, open_retrieval_kit(retrieval), progress).find(query, retriever, count)
    if as_json:
        items = [
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
        typer.echo(json.dumps({"retriever": retriever, "items": items}, ensure_ascii=False))
        return
    for one in found:
        score = "" if one.score is None else f"{one.score:.4g}"
        typer.echo(f"{one.item.id:>5}  {score:>8}  {one.item.date or '':10}  {one.item.title or one.item.text[:60]}")


def embed(
    retrieval: Annotated[
        Path, typer.Option("--retrieval", metavar="DIR", help="An encoder's directory, or one with several.")
    ],
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Embed all past texts, so that the next search by meaning need not; vectors of other encoders are removed.

    It can be interrupted and run again: what is embedded stays.

    Example: cogenesis store embed --retrieval bundles/smollm2/retrieval
    """
    from edge_runtime.retrieval.kit import open_retrieval_kit
    from edge_runtime.retrieval.search import StoreSearch
    from edge_runtime.store.profile_store import ProfileStore

    kit = open_retrieval_kit(retrieval)
    embedded = {}
    with ProfileStore(store) as opened:
        for name in kit.encoders:
            with terminal_progress(f"Embedding with {name}") as progress:
                embedded[name] = StoreSearch(opened, kit, progress).embed_missing(kit.encoder(name))
        removed = opened.keep_vectors_of([kit.encoder(name).card.fingerprint for name in kit.encoders])
    if as_json:
        typer.echo(json.dumps({"embedded": embedded, "removed": removed, "store": str(store)}))
        return
    done = ", ".join(f"{count:,} by {name}" for name, count in embedded.items()) or "none, there is no encoder"
    typer.echo(f"Texts embedded: {done}; vectors of other encoders removed: {removed:,}.")
