"""Which texts hold a word and how often, as bytes: the form of the search index's rows, and how it is read and made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SLOTS = 1 << 16
"""Most texts of a segment: a slot is two bytes."""

_MORE = 255  # the rest of this count comes with the next entry of the same slot
_SLOT = np.dtype("<u2")


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Which slots hold which words: n entries.

    Attributes:
        words: (n,) int64 ids.
        slots: (n,) int64.
        counts: (n,) int64, how often, at least 1.
    """

    words: NDArray[np.int64]
    slots: NDArray[np.int64]
    counts: NDArray[np.int64]

    def lengths(self, slots: int) -> NDArray[np.int64]:
        """Words of each of so many slots: (slots,)."""
        return np.bincount(self.slots, weights=self.counts, minlength=slots).astype(np.int64)

    def by_word(self) -> Postings:
        """The same sorted by word, those of a word in the order that they have."""
        order = np.argsort(self.words, kind="stable")
        return Postings(self.words[order], self.slots[order], self.counts[order])


def encode_list(slots: NDArray[np.int64], counts: NDArray[np.int64], size: int) -> tuple[bytes, bytes]:
    """The bytes of one word's entries.

    Args:
        slots: (n,) ascending.
        counts: (n,) at least 1.
        size: slots of the segment.

    Returns:
        Slots as little-endian uint16 and counts as uint8, a count of 255 or more as several entries of the slot. Where
        that is longer than a byte for every slot, no slots, and the counts of all slots.
    """
    if 3 * len(slots) >= size and counts.max(initial=0) < _MORE:
        dense = np.zeros(size, np.uint8)
        dense[slots] = counts
        return b"", dense.tobytes()
    repeats = counts // _MORE
    if repeats.any():
        rest = (counts % _MORE).astype(np.uint8)
        ends = np.cumsum(repeats + 1) - 1
        slots = np.repeat(slots, repeats + 1)
        counts = np.full(len(slots), _MORE, np.int64)
        counts[ends] = rest
    return slots.astype(_SLOT).tobytes(), counts.astype(np.uint8).tobytes()


def decode_list(slots: bytes, counts: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What `encode_list` was given."""
    many = np.frombuffer(counts, np.uint8)
    if not slots:
        filled = np.flatnonzero(many)
        return filled, many[filled].astype(np.int64)
    places, many_there = _joined(np.frombuffer(slots, _SLOT), many)
    return places, many_there.astype(np.int64)


def scattered(slots: bytes, counts: bytes) -> tuple[NDArray[np.int64] | None, NDArray[np.integer]]:
    """A word's entries for adding to scores: slots, None for all of them, and counts, which may be 0 only then."""
    many = np.frombuffer(counts, np.uint8)
    if not slots:
        return None, many
    return _joined(np.frombuffer(slots, _SLOT), many)


def _joined(
    slots: NDArray[np.unsignedinteger], counts: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    if counts.max(initial=0) < _MORE:
        return slots.astype(np.int64), counts
    starts = np.flatnonzero(np.diff(slots.astype(np.int64), prepend=-1))
    return slots[starts].astype(np.int64), np.add.reduceat(counts.astype(np.int64), starts)
