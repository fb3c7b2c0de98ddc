"""Compares systems on the same records by ratios of sums, where it is users, not records, that were drawn at random.

Records of one user are alike, so an interval over records would be too narrow: each user's sums are one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from personalization.measures.significance import Array, Comparison, Score, compare_systems


class Sum(NamedTuple):
    """What a measure adds up to over some records, and by what it is divided: nats and tokens, a score and 1."""

    total: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What one system gives on one record.

    Attributes:
        user: whose record it is.
        sums: by measure; all records have the same measures.
    """

    user: str
    sums: Mapping[str, Sum]


def means(records: Sequence[Measured]) -> dict[str, float]:
    """Every measure over all records; 0 where its weights are."""
    if not records:
        return {}
    found = {}
    for name in records[0].sums:
        total, weight = np.sum([record.sums[name] for record in records], axis=0)
        found[name] = float(total / weight) if weight else 0.0
    return found


def compare_by_user(system: Sequence[Measured], baseline: Sequence[Measured]) -> dict[str, Comparison]:
    """Compare two systems, by the measures that both have.

    Args:
        system: of every record.
        baseline: of the same records in the same order.

    Returns:
        By measure; see `personalization.measures.significance.compare_systems`, whose samples are users here.
    """
    names = [name for name in system[0].sums if name in baseline[0].sums] if system else []
    if not names:
        return {}
    scores = {name: _ratio(place) for place, name in enumerate(names)}
    return compare_systems(_user_sums(system, names), _user_sums(baseline, names), scores)


def _user_sums(records: Sequence[Measured], names: Sequence[str]) -> Array:
    """(users, 2 measures) float64: totals and weights in turn, users in the order of their first records."""
    users = {user: place for place, user in enumerate(dict.fromkeys(record.user for record in records))}
    sums = np.zeros((len(users), 2 * len(names)))
    for record in records:
        sums[users[record.user]] += [part for name in names for part in record.sums[name]]
    return sums


def _ratio(place: int) -> Score:
    def ratio(sums: Array) -> Array:
        totals, weights = sums[..., 2 * place], sums[..., 2 * place + 1]
        return np.divide(totals, weights, out=np.zeros_like(totals), where=weights != 0)

    return ratio
