"""Fuses several rankings of the same texts into one, on the device as offline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RRF_K = 60
"""How much later places count, as Cormack, Clarke and Büttcher (2009) chose it."""


def reciprocal_rank_scores(rankings: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Reciprocal rank fusion: a text's score is the sum of 1 / (60 + rank) over the rankings, ranks from 1.

    Args:
        rankings: at least one; each has all n places once, best first.

    Returns:
        (n,) float64 by place, higher is better.
    """
    scores = np.zeros(len(rankings[0]))
    for ranking in rankings:
        scores[ranking] += 1 / (RRF_K + np.arange(1, len(ranking) + 1))
    return scores


def alternate(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Take places from two rankings in turn, `one` first; each turn takes the best that is not taken yet.

    Args:
        one: (n,) all places, best first.
        other: (n,) the same places, best first.

    Returns:
        (n,): of its first 2 k places k were taken from each.
    """
    queues = (iter(one.tolist()), iter(other.tolist()))
    taken: dict[int, None] = {}
    for turn in range(len(one)):
        taken[next(place for place in queues[turn % 2] if place not in taken)] = None
    return np.fromiter(taken, np.int64, len(taken))
