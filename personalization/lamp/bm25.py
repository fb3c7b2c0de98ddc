"""BM25 over texts in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.store.bm25 import EPSILON, K1, best_first, inverse_document_frequency, length_norms, mean_weight
from personalization.lamp.word_table import WordTable


class Bm25:
    """Texts in which words can be searched for."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index some texts.

        Args:
            texts: any number; a text may be empty.
        """
        self._words = WordTable(texts)
        lengths, words, size = self._words.lengths, self._words.numbers, len(self._words)
        # numpy sorts numbers of 16 bits in linear time.
        order = np.argsort(words.astype(np.uint16) if size <= 1 << 16 else words, kind="stable")
        in_text, word = np.repeat(np.arange(len(texts)), lengths)[order], words[order]
        # Words in order, of each the texts in order: a posting ends where either changes.
        starts = np.flatnonzero(_changes(word) | _changes(in_text))
        times = np.diff(starts, append=len(order))
        self._texts = in_text[starts]
        self._parts = times / (times + length_norms(lengths)[self._texts])
        self._bounds = np.searchsorted(word[starts], np.arange(size + 1))
        self._weights = _weights(np.diff(self._bounds), len(texts))
        self._size = len(texts)

    def __len__(self) -> int:
        """How many texts there are."""
        return self._size

    def scores(self, query: str) -> NDArray[np.float64]:
        """Score all texts.

        Args:
            query: a word that comes several times counts as often; one that is in no text counts nothing.

        Returns:
            (n,) float64, higher is better.
        """
        asked = Counter(self._words.find(query).tolist())
        words = np.fromiter(asked, np.int64, len(asked))
        times = np.fromiter(asked.values(), np.int64, len(asked))
        starts, sizes = self._bounds[words], self._bounds[words + 1] - self._bounds[words]
        # Places of all postings of these words, word by word.
        places = np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
        parts = self._parts[places] * np.repeat(times * self._weights[words] * (K1 + 1), sizes)
        return np.bincount(self._texts[places], weights=parts, minlength=self._size).astype(np.float64)

    def rank(self, query: str) -> NDArray[np.int64]:
        """Places of all texts, best first; see `best_first`: (n,) int64."""
        return best_first(self.scores(query))


def _weights(having: NDArray[np.int64], texts: int) -> NDArray[np.float64]:
    """Weights of words.

    Args:
        having: (words,), how many texts have each.
        texts: how many there are.

    Returns:
        (words,) float64.
    """
    kinds, kind, many = np.unique(having, return_inverse=True, return_counts=True)
    idf = np.array([inverse_document_frequency(number, texts) for number in kinds.tolist()], dtype=np.float64)
    mean = mean_weight(list(zip(kinds.tolist(), many.tolist(), strict=True)), texts)
    weights: NDArray[np.float64] = np.where(idf >= 0, idf, EPSILON * mean)[kind]
    return weights


def _changes(values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether each is the first or differs from the one before it."""
    changes = np.ones(len(values), dtype=bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
