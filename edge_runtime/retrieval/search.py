"""Searches a profile store: by words, by meaning, by date, or by two of them, as the same rankings offline do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_runtime.context import HistoryItem, PrivateContext
from edge_runtime.retrieval.kit import RetrievalKit
from edge_runtime.retrieval.names import BM25, DENSE, HYBRID, MIXED, NONE, RECENCY
from edge_runtime.retrieval.rank_fusion import alternate, reciprocal_rank_scores
from edge_runtime.retrieval.text_encoder import TextEncoder
from edge_runtime.store.bm25 import best_first
from edge_runtime.store.item import StoredItem
from edge_runtime.store.profile_store import ProfileStore

Progress: TypeAlias = Callable[[int, int], None]

_EMBEDDED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Found:
    """A past text that was found; `score` is None where the retriever has none that could be compared."""

    item: StoredItem
    score: float | None


class StoreSearch:
    """Finds past texts for a query."""

    def __init__(self, store: ProfileStore, kit: RetrievalKit | None = None, progress: Progress | None = None) -> None:
        """Search a store.

        Args:
            store: it must stay open.
            kit: encoders for all but words and dates.
            progress: called with texts embedded and texts to embed, while a search by meaning prepares for that.
        """
        self._store = store
        self._kit = kit or RetrievalKit()
        self._progress = progress

    def find(self, query: str, retriever: str, count: int) -> tuple[Found, ...]:
        """The best past texts.

        Args:
            query: what they should be about.
            retriever: "bm25" (words, as `edge_runtime.store.bm25`), "recency" (by date), "none" (nothing), the name of
                an encoder of the kit (by meaning), "hybrid" (words and meaning, by reciprocal rank fusion) or "mixed"
                (half by date, half by meaning).
            count: most to give.

        Returns:
            Best first; of equally good ones the later added comes first.

        Raises:
            RequestError: there is no such retriever.
            BundleError: an encoder is damaged.
            StoreError: the store is damaged.
        """
        ids, scores = self._ranked(query, retriever, count)
        scored = dict(zip(ids, scores, strict=True))
        # What another process removed in between is left out.
        return tuple(Found(item, scored[item.id]) for item in self._store.get(ids))

    def context(self, query: str, retriever: str, count: int) -> PrivateContext:
        """The profile, and the best past texts as history, best first; errors as in `find`."""
        found = self.find(query, retriever, count)
        return PrivateContext(self._store.profile, tuple(HistoryItem(one.item.title, one.item.text) for one in found))

    def embed_missing(self, encoder: TextEncoder) -> int:
        """Embed the past texts that an encoder has no vectors of; what was done is kept if it is interrupted.

        Returns:
            How many there were.
        """
        name, done = encoder.card.fingerprint, 0
        total = self._store.count_without_vector(name)
        while items := self._store.without_vector(name, _EMBEDDED_AT_ONCE):
            self._store.put_vectors(name, items, encoder.embed([item.text for item in items]))
            done += len(items)
            if self._progress is not None:
                self._progress(done, max(total, done))
        return done

    def _ranked(self, query: str, retriever: str, count: int) -> tuple[list[int], list[float | None]]:
        if retriever == NONE or count < 1:
            return [], []
        if retriever == RECENCY:
            newest = list(self._store.newest(count))
            return newest, [None] * len(newest)
        if retriever == BM25:
            return best(*self._store.word_scores(query), count)
        if retriever == HYBRID:
            return self._hybrid(query, count)
        if retriever == MIXED:
            by_meaning, _ = best(*self._by_meaning(query, DENSE), count)
            turns = alternate(np.array(self._store.newest(count), np.int64), np.array(by_meaning, np.int64))
            return turns.tolist(), [None] * len(turns)
        return best(*self._by_meaning(query, retriever), count)

    def _by_meaning(self, query: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        encoder = self._kit.encoder(name)
        self.embed_missing(encoder)
        ids, scores = self._store.vector_scores(encoder.card.fingerprint, encoder.embed([query])[0])
        return ids, scores.astype(np.float64)

    def _hybrid(self, query: str, count: int) -> tuple[list[int], list[float | None]]:
        meant, meaning = self._by_meaning(query, DENSE)
        worded, words = self._store.word_scores(query)
        # Another process may have added a text between the two.
        ids, first, second = np.intersect1d(worded, meant, assume_unique=True, return_indices=True)
        rankings = [best_first(words[first]), best_first(meaning[second])]
        return best(ids, reciprocal_rank_scores(rankings), count)


def best(ids: NDArray[np.int64], scores: NDArray[np.float64], count: int) -> tuple[list[int], list[float | None]]:
    """The highest of n scores, falling; of equal ones the highest id first."""
    if count < len(ids):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        chosen = np.flatnonzero(scores >= least)
        ids, scores = ids[chosen], scores[chosen]
    order = np.lexsort((-ids, -scores))[:count]
    return ids[order].tolist(), scores[order].tolist()
