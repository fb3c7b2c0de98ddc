"""Fuses several rankings of the same texts into one, on the device and offline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RRF_K = 60
"""Constant that limits the weight of the first ranks, from Cormack, Clarke and Büttcher (2009)."""


def reciprocal_rank_scores(rankings: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Score texts by reciprocal rank fusion: the sum of 1 / (60 + rank) over the rankings, with ranks from 1.

    Args:
        rankings: at least one; each lists all n text indices once, best first.

    Returns:
        (n,) float64 scores by text index; higher is better.
    """
    scores = np.zeros(len(rankings[0]))
    for ranking in rankings:
        scores[ranking] += 1 / (RRF_K + np.arange(1, len(ranking) + 1))
    return scores


def alternate(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Interleave two rankings, `one` first; each turn takes the best entry that is not taken yet.

    Args:
        one: (n,) all entries, best first.
        other: (n,) the same entries, best first.

    Returns:
        (n,) entries; of the first 2 k, k come from each ranking.
    """
    queues = (iter(one.tolist()), iter(other.tolist()))
    taken: dict[int, None] = {}
    for turn in range(len(one)):
        taken[next(place for place in queues[turn % 2] if place not in taken)] = None
    return np.fromiter(taken, np.int64, len(taken))
