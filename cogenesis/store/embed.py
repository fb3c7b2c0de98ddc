"""`cogenesis store embed`: computes the vectors of all past texts, for search by meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption
from cogenesis.options.retrieval import RETRIEVAL
from cogenesis.options.store import DEFAULT_STORE, StoreOption
from cogenesis.terminal.counter import terminal_progress


def embed(
    retrieval: Annotated[Path, RETRIEVAL],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Embed all past texts, so that the next search by meaning is fast.

    The command removes vectors of other encoders. An interrupted run resumes.

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
