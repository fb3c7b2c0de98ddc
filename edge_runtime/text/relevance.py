"""Ranks private texts by their relevance to an instruction, on the device."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Scripts written without spaces count each character as a word.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

K1 = 1.5
B = 0.75
DELTA = 1.0


def words(text: str) -> list[str]:
    """Case-folded words of `text`, in order."""
    return _WORD.findall(text.casefold())


def rank(query: str, documents: Sequence[str]) -> list[int]:
    """Order documents by BM25+ (Lv and Zhai, 2011; k1 1.5, b 0.75, delta 1).

    This variant's word weights are never negative, as plain BM25's are for a word that is in most of a few documents.

    Args:
        query: what the documents should be about.
        documents: oldest first.

    Returns:
        Indices of all documents, best first; of equally good ones the later comes first.
    """
    asked, corpus = words(query), [words(document) for document in documents]
    if not asked or not any(corpus):
        return list(range(len(documents)))[::-1]
    import bm25s  # only a history that doesn't fit needs it, so it is no part of a cold start

    index = bm25s.BM25(method="bm25+", k1=K1, b=B, delta=DELTA, dtype="float64")
    index.index(corpus, show_progress=False)
    scores = index.get_scores(asked)
    return sorted(range(len(documents)), key=lambda i: (-float(scores[i]), -i))
