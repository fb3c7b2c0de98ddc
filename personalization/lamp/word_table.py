"""Numbers the words of many texts without creating a string for each, which would take as long as everything here.

Words are the ones that `str.split` gives. numpy finds them in the texts' UTF-8 bytes and handles each as two 64-bit
integers. A hash assigns words to slots. In a slot, the words equal to the last one get one number; the others are
rehashed with other multipliers. So a number always means exactly one word, whatever the hashes are. A dictionary
numbers the few words that are too long for two integers or that a few hashes don't separate.
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

# All characters for which `str.isspace` holds; computing them at import would take too long.
_ASCII_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "
_OTHER_SPACES = "\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_IS_ASCII_SPACE = bytes(chr(code) in _ASCII_SPACES for code in range(256))
_OTHER_SPACE = re.compile(f"[{_OTHER_SPACES}]")
_HALF, _WHOLE = 8, 16  # bytes of one integer, and of two
_FEWEST_BITS = 4
_NOT_FOUND = -1
# Odd, with random-looking bits; one pair per round.
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
    """Words of some texts, by position.

    Attributes:
        data: UTF-8 of the texts, concatenated, with padding after the last.
        starts, sizes: (words,) int64, in bytes.
        lengths: (texts,) int64, number of words in each.
        low, high: (words,) the first 8 bytes of each word and the next 8, without bytes beyond the word.
    """

    data: bytes
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    low: Keys
    high: Keys

    def word(self, place: int) -> bytes:
        """Return the word at an index."""
        start = int(self.starts[place])
        return self.data[start : start + int(self.sizes[place])]


class WordTable:
    """The distinct words of some texts.

    Attributes:
        numbers: (all words,) int32, the number of each word, text by text; the distinct words have 0 .. len(table) - 1.
        lengths: (texts,) int64, number of words in each text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._cut = _cut(texts)
        self.lengths = self._cut.lengths
        self.numbers, self._samples = _numbered(self._cut)
        hashes = _hashes(self._cut.low[self._samples], self._cut.high[self._samples], _MULTIPLIERS[0])
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        """Return the number of distinct words."""
        return len(self._samples)

    def find(self, text: str) -> NDArray[np.int64]:
        """Return the numbers of a text's words, in order: (found,); words that the table lacks are left out."""
        asked, cut = _cut([text]), self._cut
        hashes = _hashes(asked.low, asked.high, _MULTIPLIERS[0])
        first = np.searchsorted(self._hashes, hashes, "left")
        several = np.searchsorted(self._hashes, hashes, "right") - first
        found = np.full(len(asked.low), _NOT_FOUND, np.int64)
        # Almost always at most one word has this hash and fits into two integers.
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
    """Read up to 8 bytes from each start as one integer."""
    everywhere = np.ndarray((len(data) - _HALF + 1,), "<u8", buffer=data, strides=(1,))
    unused = (8 * np.maximum(_HALF - sizes, 0)).astype(np.uint64)
    return everywhere[starts] << unused


def _numbered(cut: _Cut) -> tuple[Places, Places]:
    """Return the number of each word, and an index of a word with each number."""
    total = len(cut.starts)
    # For each word, the index of an equal word; all equal words share one index.
    same = np.arange(total, dtype=np.int32)
    left = np.flatnonzero(cut.sizes <= _WHOLE).astype(np.int32)
    bits = max(total.bit_length() - 1, _FEWEST_BITS)  # words repeat, so there are more slots than distinct words
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
    """Compute a 64-bit hash for each word; the upper bits are mixed best."""
    mixed = low * multipliers[0] ^ high * multipliers[1]
    mixed ^= mixed >> np.uint64(32)
    return mixed * multipliers[1]
