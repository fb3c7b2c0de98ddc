"""Finds texts that nearly repeat an earlier one, by their common word n-grams."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from personalization.measures.rouge import rouge_words


def distinct(texts: Sequence[str], *, words: int, similar: float) -> list[int]:
    """Return the indices of the texts that do not resemble any text kept before them.

    Similarity is the Jaccard index of the sets of word n-grams (shingles; Broder, 1997). It is 1 for the same words in
    the same order, regardless of case and punctuation.

    Args:
        texts: texts in order of preference.
        words: length of an n-gram; a shorter text is one n-gram.
        similar: similarity from which a text is dropped, above 0.
    """
    kept: list[int] = []
    sizes: dict[int, int] = {}
    having: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)  # n-gram -> kept texts that contain it
    for index, text in enumerate(texts):
        own = _runs(text, words)
        shared = Counter(other for run in own for other in having[run])
        if any(count >= similar * (len(own) + sizes[other] - count) for other, count in shared.items()):
            continue
        kept.append(index)
        sizes[index] = len(own)
        for run in own:
            having[run].append(index)
    return kept


def _runs(text: str, words: int) -> set[tuple[str, ...]]:
    said = rouge_words(text) or [text]  # a text without a-z counts as one word
    return {tuple(said[start : start + words]) for start in range(max(len(said) - words, 0) + 1)}
