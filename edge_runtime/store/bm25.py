"""Ranks texts by BM25 Okapi as LaMP does, with the same scores as the package `rank_bm25`.

The weight of a word in n of N texts is its idf, log(N - n + 0.5) - log(n + 0.5) (Robertson and Walker, 1994). A
negative weight is replaced by epsilon times the mean idf of all words, which may itself be negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K1 = 1.5
B = 0.75
EPSILON = 0.25


def tokenize(text: str) -> list[str]:
    """Split a text at white space; case is kept."""
    return text.split()


def best_first(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the scores, best first; ties go to the later index, which is newer in a list by time.

    Args:
        scores: (n,), without NaN.

    Returns:
        (n,) int64.
    """
    return np.argsort(scores, kind="stable")[::-1].astype(np.int64)


def inverse_document_frequency(having: int, texts: int) -> float:
    """Return the idf of a word that `having` of `texts` texts contain; negative if more than half do."""
    return math.log(texts - having + 0.5) - math.log(having + 0.5)


def length_norms(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the term added to a word's count in the denominator: k1 (1 - b + b length / mean length).

    Args:
        lengths: (n,) number of words in each text.

    Returns:
        (n,) float64.
    """
    total = int(lengths.sum())
    mean = total / len(lengths) if total else 1.0
    norms: NDArray[np.float64] = K1 * (1 - B + B * lengths.astype(np.float64) / mean)
    return norms


def mean_weight(words_by_having: Sequence[tuple[int, int]], texts: int) -> float:
    """Return the mean idf of all distinct words.

    Args:
        words_by_having: pairs of a number of texts, and the number of words that occur in exactly that many.
        texts: number of all texts.

    Returns:
        The mean; 0 if there are no words. The sum is rounded once, so it does not depend on the order.
    """
    words = sum(number for _, number in words_by_having)
    total = math.fsum(number * inverse_document_frequency(having, texts) for having, number in words_by_having)
    return total / words if words else 0.0
