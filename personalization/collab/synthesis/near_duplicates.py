"""Finds texts that say again what an earlier one says, by the runs of words that they share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from personalization.measures.rouge import rouge_words


def distinct(texts: Sequence[str], *, words: int, similar: float) -> list[int]:
    """Indices of the texts that are unlike every text kept before them.

    Likeness is the Jaccard index of the sets of runs of words (shingles; Broder, 1997): 1 for texts of the same words
    in the same order, whatever their case and punctuation.

    Args:
        texts: in the order in which they are preferred.
        words: of a run; a text that is shorter is one run.
        similar: likeness from which on a text is left out, above 0.
    """
    kept: list[int] = []
    sizes: dict[int, int] = {}
    having: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)  # run -> the kept texts that have it
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
    said = rouge_words(text) or [text]  # a text without a-z is a word of its own
    return {tuple(said[start : start + words]) for start in range(max(len(said) - words, 0) + 1)}
