"""Ranks texts by BM25 Okapi as LaMP does, score for score as the package `rank_bm25`: words in most texts count little.

The weight of a word is its idf, log(N - n + 0.5) - log(n + 0.5) with n of N texts that have it (Robertson and Walker,
1994). Where that is negative it is replaced by epsilon times the mean idf of all words, which may be negative, too.
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
