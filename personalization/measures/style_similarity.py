"""How like a user's own texts an answer is written: Cosine Delta, a measure of authorship.

Burrows' Delta (2002) compares texts by how much more or less often than others they use the most frequent words, which
say little of a text's subject; the cosine of these z-scores tells authors apart best (Smith and Aldridge, 2011; Evert
et al., 2017).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_FREQUENT = 150
"""Words that count."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


class StyleSpace:
    """The most frequent words of many users' texts, and how often texts use each."""

    def __init__(self, texts: Sequence[str], words: int = MOST_FREQUENT) -> None:
        """Learn what is usual.

        Args:
            texts: of many users.
            words: how many of the most frequent words count; those that all texts use equally often do not.
        """
        found = [_words(text) for text in texts]
        totals = Counter(word for one in found for word in one)
        # Equally frequent words by the alphabet, so that the order of the texts changes nothing.
        ranked = sorted(totals, key=lambda word: (-totals[word], word))[:words]
        self._index = {word: place for place, word in enumerate(ranked)}
        shares = np.array([self._shares(one) for one in found]).reshape(len(found), len(ranked))
        self._mean = shares.mean(axis=0) if found else np.zeros(0)
        spread = shares.std(axis=0) if found else np.zeros(0)
        self._scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)

    def similarity(self, text: str, own: Sequence[str]) -> float:
        """Cosine of a text's z-scores and the mean of those of a user's own texts: -1 .. 1, 0 where nothing is known.

        Args:
            text: the answer.
            own: the user's texts.
        """
        if not own:
            return 0.0
        ours = self._scores(text)
        theirs = np.mean([self._scores(one) for one in own], axis=0)
        size = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
        return float(ours @ theirs) / size if size else 0.0

    def _scores(self, text: str) -> NDArray[np.float64]:
        words = _words(text)
        return (self._shares(words) - self._mean) * self._scale if words else np.zeros(len(self._index))

    def _shares(self, words: Sequence[str]) -> NDArray[np.float64]:
        """(words,) float64: the share that each frequent word has of a text's words."""
        counts = np.zeros(len(self._index))
        for word in words:
            if (place := self._index.get(word)) is not None:
                counts[place] += 1
        return counts / max(len(words), 1)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
