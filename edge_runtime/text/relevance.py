"""Ranks private texts by their relevance to an instruction, on the device."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

# Scripts written without spaces count each character as a word.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

K1 = 1.5
B = 0.75


def words(text: str) -> list[str]:
    """Return the case-folded words of `text`, in order."""
    return _WORD.findall(text.casefold())


def rank(query: str, documents: Sequence[str]) -> list[int]:
    """Order documents by BM25 with the word weights of BM25+ (Lv and Zhai, 2011; k1 1.5, b 0.75).

    In this variant, word weights are never negative. Plain BM25 gives a negative weight to a word in most documents.

    Args:
        query: text that relevant documents resemble.
        documents: oldest first.

    Returns:
        Indices of all documents, best first; ties go to the later document.
    """
    asked, corpus = words(query), [words(document) for document in documents]
    if not asked or not any(corpus):
        return list(range(len(documents)))[::-1]
    counts = [Counter(document) for document in corpus]
    mean_length = sum(map(len, corpus)) / len(corpus)
    scores = [0.0] * len(corpus)
    for word in asked:
        having = [place for place, count in enumerate(counts) if word in count]
        for place in having:
            times, length = counts[place][word], len(corpus[place])
            share = times / (times + K1 * (1 - B + B * length / mean_length))
            scores[place] += math.log((len(corpus) + 1) / len(having)) * share
    return sorted(range(len(documents)), key=lambda place: (-scores[place], -place))
