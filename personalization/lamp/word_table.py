"""Numbers the words of many texts without making a string of each, which alone would take as long as all of this.

Words are what `str.split` gives. They are cut out of the texts' UTF-8 bytes by numpy, and looked at as two integers of
64 bits. They are put into slots by a hash; in a slot those that equal the last one get one number, and the others are
hashed again, otherwise. So a number stands for a word exactly, whatever the hashes are. The few words that two integers
can't hold, and those that a few hashes don't part, are numbered by a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
Places: TypeAlias = NDArray[np.int32]

# All that `str.isspace` takes for white space; to look through all characters at import would take too long.
_ASCII_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "
_OTHER_SPACES = "\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_IS_ASCII_SPACE = bytes(chr(code) in _ASCII_SPACES for code in range(256))
_OTHER_SPACE = re.compile(f"[{_OTHER_SPACES}]")
_HALF, _WHOLE = 8, 16  # bytes of one integer, and of two
_FEWEST_BITS = 4
_NOT_FOUND = -1
# Odd, with bits that look random; one pair a round.
_MULTIPLIERS = tuple(
    (np.uint64(one), np.uint64(other))
    for one, other in (
        (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F),
        (0x9FB21C651E98DF25, 0xD6E8FEB86659FD93),
        (0xA0761D6478BD642F, 0xE7037ED1A0B428DB),
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """Words of some texts, by their places.

    Attributes:
        data: UTF-8 of the texts, one after the other, and some bytes behind the last.
        starts, sizes: (words,) int64, in bytes.
        lengths: (texts,) int64, words of each.
        low, high: (words,) the first 8 bytes of each word and the next 8, without what does not belong to it.
    """

    data: bytes
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    low: Keys
    high: Keys

    def word(self, place: int) -> bytes:
        """One of them."""
        start = int(self.starts[place])
        return self.data[start : start + int(self.sizes[place])]


class WordTable:
    """The distinct words of some texts.

    Attributes:
        numbers: (all words,) int32, the number of each word, text by text; the distinct words have 0 .. len(table) - 1.
        lengths: (texts,) int64, words of each text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._cut = _cut(texts)
        self.lengths = self._cut.lengths
        self.numbers, self._samples = _numbered(self._cut)
        hashes = _hashes(self._cut.low[self._samples], self._cut.high[self._samples], _MULTIPLIERS[0])
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        """How many distinct words there are."""
        return len(self._samples)

    def find(self, text: str) -> NDArray[np.int64]:
        """Numbers of a text's words, in its order: (found,); words that the table does not have are left out."""
        asked, cut = _cut([text]), self._cut
        hashes = _hashes(asked.low, asked.high, _MULTIPLIERS[0])
        first = np.searchsorted(self._hashes, hashes, "left")
        several = np.searchsorted(self._hashes, hashes, "right") - first
        found = np.full(len(asked.low), _NOT_FOUND, np.int64)
        # Nearly always one word at most has this hash, and two integers hold all of it.
        alone = np.flatnonzero((several == 1) & (asked.sizes <= _WHOLE))
        numbers = self._order[first[alone]]
        places = self._samples[numbers]
        equal = (asked.low[alone] == cut.low[places]) & (asked.high[alone] == cut.high[places])
        equal &= asked.sizes[alone] == cut.sizes[places]
        found[alone[equal]] = numbers[equal]
        for place in np.flatnonzero((several > 1) | (several == 1) & (asked.sizes > _WHOLE)).tolist():
            for number in self._order[first[place] : first[place] + several[place]].tolist():
                if asked.word(place) == cut.word(int(self._samples[number])):
                    found[place] = number
        known: NDArray[np.int64] = found[found != _NOT_FOUND]
        return known


def _cut(texts: Sequence[str]) -> _Cut:
    if not all(map(str.isascii, texts)):
        texts = [text if text.isascii() else _OTHER_SPACE.sub(" ", text) for text in texts]
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    data = b"".join((b" ", b" ".join(encoded), b" ", bytes(_WHOLE)))
    spaces = np.frombuffer(data[:-_WHOLE].translate(_IS_ASCII_SPACE), np.bool_)
    edges = np.flatnonzero(spaces[1:] != spaces[:-1]) + 1
    starts, sizes = edges[::2], edges[1::2] - edges[::2]
    ends_of_texts = np.cumsum([1 + len(text) for text in encoded], dtype=np.int64)
    behind_last = np.searchsorted(starts, ends_of_texts)
    low = _integers(data, starts, sizes)
    high = np.zeros_like(low)
    long = np.flatnonzero(sizes > _HALF)
    high[long] = _integers(data, starts[long] + _HALF, sizes[long] - _HALF)
    return _Cut(data, starts, sizes, np.diff(behind_last, prepend=0), low, high)


def _integers(data: bytes, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Keys:
    """Up to 8 bytes from each start as one integer."""
    everywhere = np.ndarray((len(data) - _HALF + 1,), "<u8", buffer=data, strides=(1,))
    unused = (8 * np.maximum(_HALF - sizes, 0)).astype(np.uint64)
    return everywhere[starts] << unused


def _numbered(cut: _Cut) -> tuple[Places, Places]:
    """The number of each word, and a place where each number's word stands."""
    total = len(cut.starts)
    # For each word a place where the same word stands, one for all that are the same.
    same = np.arange(total, dtype=np.int32)
    left = np.flatnonzero(cut.sizes <= _WHOLE).astype(np.int32)
    bits = max(total.bit_length() - 1, _FEWEST_BITS)  # a word comes many times, so there are more slots than words
    last_in = np.empty(1 << bits, np.int32)
    for multipliers in _MULTIPLIERS:
        low, high, sizes = cut.low[left], cut.high[left], cut.sizes[left]
        slots = (_hashes(low, high, multipliers) >> np.uint64(64 - bits)).astype(np.int64)
        last_in[slots] = left
        chosen = last_in[slots]
        equal = (cut.low[chosen] == low) & (cut.high[chosen] == high) & (cut.sizes[chosen] == sizes)
        same[left[equal]] = chosen[equal]
        left = left[~equal]
    chosen_for: dict[bytes, int] = {}
    for place in (*left.tolist(), *np.flatnonzero(cut.sizes > _WHOLE).tolist()):
        same[place] = chosen_for.setdefault(cut.word(place), place)
    is_chosen = np.zeros(total, np.bool_)
    is_chosen[same] = True
    numbers = np.cumsum(is_chosen, dtype=np.int32) - 1
    return numbers[same].astype(np.int32), np.flatnonzero(is_chosen).astype(np.int32)


def _hashes(low: Keys, high: Keys, multipliers: tuple[np.uint64, np.uint64]) -> Keys:
    """A number of 64 bits for each word; the upper ones are the best mixed."""
    mixed = low * multipliers[0] ^ high * multipliers[1]
    mixed ^= mixed >> np.uint64(32)
    return mixed * multipliers[1]
