"""Ranks texts by BM25 Okapi as LaMP does, score for score as the package `rank_bm25`: words in most texts count little.

The weight of a word is its idf, log(N - n + 0.5) - log(n + 0.5) with n of N texts that have it (Robertson and Walker,
1994). Where that is negative it is replaced by epsilon times the mean idf of all words, which may be negative, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.word_table import WordTable

K1 = 1.5
B = 0.75
EPSILON = 0.25


def tokenize(text: str) -> list[str]:
    """What is between white space, case kept."""
    return text.split()


def best_first(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the scores, best first; of equal ones the later comes first, since it is newer where order is time.

    Args:
        scores: (n,), none of them NaN.

    Returns:
        (n,) int64.
    """
    return np.argsort(scores, kind="stable")[::-1].astype(np.int64)


def inverse_document_frequency(having: int, texts: int) -> float:
    """How much a word tells that `having` of so many texts have; below 0 where more than half have it."""
    return math.log(texts - having + 0.5) - math.log(having + 0.5)


def length_norms(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is added to a word's count in the denominator: k1 (1 - b + b length / mean length).

    Args:
        lengths: (n,), words of each text.

    Returns:
        (n,) float64.
    """
    total = int(lengths.sum())
    mean = total / len(lengths) if total else 1.0
    norms: NDArray[np.float64] = K1 * (1 - B + B * lengths.astype(np.float64) / mean)
    return norms


def mean_weight(words_by_having: Sequence[tuple[int, int]], texts: int) -> float:
    """Mean idf of all distinct words.

    Args:
        words_by_having: number of texts, and how many words are in just so many of them.
        texts: how many there are.

    Returns:
        0 where there are no words. The sum is rounded once, so it is the same in any order.
    """
    words = sum(number for _, number in words_by_having)
    total = math.fsum(number * inverse_document_frequency(having, texts) for having, number in words_by_having)
    return total / words if words else 0.0


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
