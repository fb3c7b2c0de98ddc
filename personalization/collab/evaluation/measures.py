"""Measures answers: words and facts shared with the reference, the user's style, length, and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from personalization.collab.evaluation.answers import CollabAnswer
from personalization.collab.evaluation.private_recall import PrivateFacts
from personalization.collab.records.records import CollabRecord
from personalization.measures.by_user import Measured, Sum
from personalization.measures.rouge import rouge_1, rouge_l, rouge_words
from personalization.measures.style_similarity import StyleSpace

ROUGE_1, ROUGE_L, FACTS, STYLE, WORDS = "rouge-1", "rouge-l", "private facts", "style", "words"
SECONDS, TRIPS, UP, DOWN, FUSED = "seconds", "round trips", "bytes up", "bytes down", "fused"
QUALITY = (ROUGE_1, ROUGE_L, FACTS, STYLE)
"""Measures for which more is better; the others are neutral."""


class AnswerMeasures:
    """The references, facts and styles that answers are measured against; computed once for all systems."""

    def __init__(self, records: Sequence[CollabRecord]) -> None:
        """Collect each reference's private facts and the writing style of the records' users."""
        self._records = records
        self._facts = [PrivateFacts(one.device_context, one.instruction, one.reference) for one in records]
        self._own = [[item.text for item in one.context.history] if one.context else [] for one in records]
        everybody = dict.fromkeys(text for texts in self._own for text in texts)
        self._space = StyleSpace(list(everybody))
        self._words = [rouge_words(one.reference) for one in records]

    def of_answers(self, answers: Sequence[CollabAnswer]) -> list[Measured]:
        """Measure a system's answers, one per record."""
        return [self._measured(number, answer.text, _cost(answer)) for number, answer in enumerate(answers)]

    def of_references(self) -> list[Measured]:
        """Measure the references themselves, as an upper limit."""
        return [self._measured(number, record.reference, {}) for number, record in enumerate(self._records)]

    def _measured(self, number: int, text: str, cost: Mapping[str, Sum]) -> Measured:
        words, facts, own = rouge_words(text), self._facts[number], self._own[number]
        wanted = self._words[number]
        sums = {
            ROUGE_1: Sum(rouge_1(wanted, words)),
            ROUGE_L: Sum(rouge_l(wanted, words)),
            FACTS: Sum(facts.told(text), len(facts)),
            STYLE: Sum(self._space.similarity(text, own), bool(own)),
            WORDS: Sum(len(words)),
        }
        return Measured(self._records[number].user, {**sums, **cost})


_COSTS: Mapping[str, Callable[[CollabAnswer], Sum]] = {
    SECONDS: lambda answer: Sum(answer.seconds),
    TRIPS: lambda answer: Sum(answer.round_trips),
    UP: lambda answer: Sum(answer.bytes_up),
    DOWN: lambda answer: Sum(answer.bytes_down),
    FUSED: lambda answer: Sum(answer.fused_tokens, answer.tokens),
}


def _cost(answer: CollabAnswer) -> dict[str, Sum]:
    return {name: measure(answer) for name, measure in _COSTS.items()}
