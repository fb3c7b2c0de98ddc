"""ROUGE-1 and ROUGE-L (Lin, 2004): F-measures of common words, and of the longest common subsequence of words.

Words are runs of a-z and 0-9 in the lower-cased text, not stemmed, as in Google's `rouge_score`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def rouge_words(text: str) -> list[str]:
    """The words that count."""
    return _WORD.findall(text.lower())


def rouge_1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """F-measure of the words that both have, each as often as both have it; 0 .. 1."""
    return _f_measure((Counter(gold) & Counter(predicted)).total(), gold, predicted)


def rouge_l(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """F-measure of the longest sequence of words that both have in this order, with gaps; 0 .. 1."""
    return _f_measure(longest_common_subsequence(gold, predicted), gold, predicted)


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length, by the bit-parallel algorithm of Hyyrö (2004): a word of `other` takes one pass over `one`'s bits.

    Bit i of `unmatched` is 0 where the length grows at one[i].
    """
    places: dict[str, int] = {}
    for index, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << index
    everything = (1 << len(one)) - 1
    unmatched = everything
    for word in other:
        matched = unmatched & places.get(word, 0)
        unmatched = (unmatched + matched | unmatched - matched) & everything
    return len(one) - unmatched.bit_count()


def _f_measure(common: int, gold: Sequence[str], predicted: Sequence[str]) -> float:
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)
