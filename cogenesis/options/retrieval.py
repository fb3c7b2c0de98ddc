"""Options for the past texts of a store that go into a prompt, and for the retriever that finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

STORE = "Past texts from a profile store"

RETRIEVAL = typer.Option(
    "--retrieval",
    metavar="DIR",
    help="Directory of an encoder, or of several with a selector. Default: the encoders in the bundle, "
    "if there is one.",
    rich_help_panel=STORE,
    show_default=False,
)
RETRIEVER = typer.Option(
    "--retriever",
    help="How to choose past texts. recency: by date. bm25: by words. An encoder's name: by meaning. "
    "hybrid: by words and meaning. mixed: by date and meaning. `generate` and `chat` also accept none, and "
    "auto for the choice of the bundle's selector. Without this option they use all past texts that fit.",
    rich_help_panel=STORE,
)
ItemsOption = Annotated[
    int, typer.Option("--items", min=1, help="Maximum number of past texts to retrieve.", rich_help_panel=STORE)
]


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """The past texts of a store that go into a prompt."""

    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            metavar="FILE",
            help="Profile store to take the profile and past texts from. Fill it with `cogenesis store`.",
            rich_help_panel=STORE,
            show_default=False,
        ),
    ] = None
    retriever: Annotated[str | None, RETRIEVER] = None
    items: ItemsOption = 4
    retrieval: Annotated[Path | None, RETRIEVAL] = None

    @contextmanager
    def open(self, bundle: Path) -> Iterator[Retrieval | None]:
        """Open the store while its contexts are needed; yields None if no store is given.

        Raises:
            RequestError: a retriever is given without a store.
        """
        if self.store is None:
            if self.retriever is not None:
                raise RequestError("A --retriever searches a store. Name one with --store.")
            yield None
            return
        from edge_runtime.retrieval.kit import bundle_retrieval, open_retrieval_kit
        from edge_runtime.store.profile_store import ProfileStore

        kit = open_retrieval_kit(self.retrieval or bundle_retrieval(bundle))
        with ProfileStore(self.store) as opened:
            yield Retrieval(opened, kit, self.retriever, self.items)


class Retrieval:
    """Builds the private context for each instruction."""

    def __init__(self, store: ProfileStore, kit: RetrievalKit, retriever: str | None, count: int) -> None:
        self._store, self._kit, self._retriever, self._count = store, kit, retriever, count
        self._selector: Selector | None = None

    def context(
        self,
        instruction: PublicInstruction,
        own: PrivateContext,
        write: Callable[[PrivateContext], str] | None = None,
    ) -> Choice:
        """Build the context for an instruction.

        Args:
            instruction: the public instruction.
            own: context from the request; it comes first.
            write: writes an answer with a context, for a selector that reads answers; None if it can't be written.

        Raises:
            RequestError: the retriever does not exist, or the selector needs answers that can't be written.
        """
        # Imported here, so that a help page does not wait for the search code.
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
