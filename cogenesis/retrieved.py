"""The past texts of a store that go into a prompt: found by a retriever that the user names or a selector picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.terminal.counter import terminal_progress
from edge_runtime.context import PrivateContext, PublicInstruction, joined
from edge_runtime.errors import RequestError
from edge_runtime.retrieval.names import AUTO

if TYPE_CHECKING:
    from edge_runtime.retrieval.choice import Choice
    from edge_runtime.retrieval.kit import RetrievalKit
    from edge_runtime.retrieval.selector import Selector
    from edge_runtime.store.profile_store import ProfileStore

StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Take profile and past texts from this store, see `cogenesis store`.")
]
RetrieverOption = Annotated[
    str | None,
    typer.Option(
        help="Which past texts of the store: none, recency, bm25, an encoder of the bundle by its name, hybrid, mixed, "
        "or auto for what the bundle's selector picks. Default: all that fit."
    ),
]
ItemsOption = Annotated[int, typer.Option("--items", min=1, help="Past texts that the retriever finds.")]
RetrievalOption = Annotated[
    Path | None,
    typer.Option("--retrieval", metavar="DIR", help="Encoders and selector, instead of those in the bundle."),
]


class Retrieval:
    """Gives each instruction its private context."""

    def __init__(self, store: ProfileStore, kit: RetrievalKit, retriever: str | None, count: int) -> None:
        self._store, self._kit, self._retriever, self._count = store, kit, retriever, count
        self._selector: Selector | None = None

    def context(
        self,
        instruction: PublicInstruction,
        own: PrivateContext,
        write: Callable[[PrivateContext], str] | None = None,
    ) -> Choice:
        """The context for an instruction.

        Args:
            instruction: what should be written.
            own: what is known besides; it goes first.
            write: writes an answer with a context, for a selector that reads answers; None where that can't be.

        Raises:
            RequestError: there is no such retriever, or the selector reads answers that can't be written.
        """
        # Imported here, so that a help page does not wait for what reads and searches.
        from edge_runtime.retrieval.choice import Choice, choose_retriever, contexts_of
        from edge_runtime.retrieval.search import StoreSearch

        if self._retriever is None:
            return Choice("all", joined(own, self._store.context()))
        with terminal_progress("Embedding past texts") as progress:
            search = StoreSearch(self._store, self._kit, progress)
            if self._retriever != AUTO:
                found = search.context(instruction.text, self._retriever, self._count)
                return Choice(self._retriever, joined(own, found))
            self._selector = selector = self._selector or self._kit.selector()
            contexts = contexts_of(search, selector, instruction, own, self._count)
        if write is None and selector.reads_answers:
            raise RequestError(
                "This selector reads answers of the device alone. Use --mode edge, or name a --retriever."
            )
        return choose_retriever(selector, instruction, contexts, write or str)


@contextmanager
def open_retrieval(
    store: Path | None, retriever: str | None, count: int, retrieval: Path | None, bundle: Path
) -> Iterator[Retrieval | None]:
    """Open a store for as long as contexts are taken from it; None where there is none.

    Raises:
        RequestError: a retriever is named without a store.
    """
    if store is None:
        if retriever is not None:
            raise RequestError("A --retriever searches a store. Name one with --store.")
        yield None
        return
    from edge_runtime.retrieval.kit import bundle_retrieval, open_retrieval_kit
    from edge_runtime.store.profile_store import ProfileStore

    kit = open_retrieval_kit(retrieval or bundle_retrieval(bundle))
    with ProfileStore(store) as opened:
        yield Retrieval(opened, kit, retriever, count)
