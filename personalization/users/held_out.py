"""Splits a user's items into those to train on and those that tell when to stop."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from personalization.users.data import Pair

FEWEST_ITEMS = 10
"""With fewer items than this none is held out: every text is worth more in training than as a noisy judge."""


@dataclass(frozen=True, slots=True)
class Split:
    """A user's pairs: `training` is learnt from, `held_out` never."""

    training: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> Split:
    """Hold some pairs out.

    Args:
        pairs: all of a user's.
        share: of them to hold out, rounded up to whole pairs; at least one is left for training.
        seed: which ones.

    Returns:
        All for training where there are fewer than `FEWEST_ITEMS` or the share is 0.
    """
    if share <= 0 or len(pairs) < FEWEST_ITEMS:
        return Split(tuple(pairs), ())
    count = min(math.ceil(share * len(pairs)), len(pairs) - 1)
    chosen = set(random.Random(f"{seed}\0held out").sample(range(len(pairs)), count))
    return Split(
        tuple(pair for index, pair in enumerate(pairs) if index not in chosen),
        tuple(pair for index, pair in enumerate(pairs) if index in chosen),
    )
