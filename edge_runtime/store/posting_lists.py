"""Encodes posting lists, the rows of the search index: the texts that contain a word, and how often each does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SLOTS = 1 << 16
"""Maximum texts in a segment: a slot takes two bytes."""

_MORE = 255  # the next entry of the same slot continues this count
_SLOT = np.dtype("<u2")


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Occurrences of words in slots: n entries.

    Attributes:
        words: (n,) int64 word ids.
        slots: (n,) int64 slots.
        counts: (n,) int64 occurrences, at least 1.
    """

    words: NDArray[np.int64]
    slots: NDArray[np.int64]
    counts: NDArray[np.int64]

    def lengths(self, slots: int) -> NDArray[np.int64]:
        """Return the number of words in each of the first `slots` slots: (slots,)."""
        return np.bincount(self.slots, weights=self.counts, minlength=slots).astype(np.int64)

    def by_word(self) -> Postings:
        """Return the entries sorted by word; entries of one word keep their order."""
        order = np.argsort(self.words, kind="stable")
        return Postings(self.words[order], self.slots[order], self.counts[order])


def encode_list(slots: NDArray[np.int64], counts: NDArray[np.int64], size: int) -> tuple[bytes, bytes]:
    """Encode one word's entries.

    Args:
        slots: (n,) slots, ascending.
        counts: (n,) counts, at least 1.
        size: number of slots in the segment.

    Returns:
        Slots as little-endian uint16 and counts as uint8; a count of 255 or more becomes several entries of its slot.
        If one byte for each slot of the segment is shorter, the slots are empty and the counts cover all slots.
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
    """Decode the slots and counts of `encode_list`."""
    many = np.frombuffer(counts, np.uint8)
    if not slots:
        filled = np.flatnonzero(many)
        return filled, many[filled].astype(np.int64)
    places, many_there = _joined(np.frombuffer(slots, _SLOT), many)
    return places, many_there.astype(np.int64)


def scattered(slots: bytes, counts: bytes) -> tuple[NDArray[np.int64] | None, NDArray[np.integer]]:
    """Decode a word's entries for scoring. Slots of None mean all slots, and only then may counts be 0."""
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
