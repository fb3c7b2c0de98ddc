"""What a retriever learns from: a question's query, some profile items, and what each was worth to the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from personalization.errors import DataError
from personalization.lamp.shown_items import item_key

if TYPE_CHECKING:
    from personalization.lamp.questions import QuestionFile

FEWEST = 2
"""Items with feedback that a question must have: of one alone there is nothing to choose."""


@dataclass(frozen=True, slots=True)
class RetrieverExample:
    """One question.

    Attributes:
        query: what the profile is searched for.
        documents: items' texts.
        gains: what each item was worth, higher is better.
    """

    query: str = field(repr=False)
    documents: tuple[str, ...] = field(repr=False)
    gains: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RetrieverExamples:
    """Questions to learn from, and how many others have feedback on too few items."""

    examples: tuple[RetrieverExample, ...]
    skipped: int


def retriever_examples(
    questions: QuestionFile, feedback: Mapping[str, float], *, most: int, use_date: bool = False
) -> RetrieverExamples:
    """Put questions and feedback together.

    Args:
        questions: as the feedback was made of them, best in the order of a ranking.
        feedback: see `read_item_feedback`.
        most: items of a question; the first that have feedback are taken.
        use_date: end items' texts in their dates.

    Raises:
        DataError: a question is not of the task's form, or no question has an item with feedback.
    """
    found = []
    known = 0
    for question in questions:
        valued = [item for item in question.profile if item_key(question.id, item.id) in feedback][:most]
        known += len(valued)
        if len(valued) < FEWEST:
            continue
        documents = (questions.task.document_text(item.fields, use_date=use_date) for item in valued)
        gains = _gains(feedback, question.id, (item.id for item in valued))
        found.append(RetrieverExample(questions.query(question), tuple(documents), gains))
    if not known:
        raise DataError(
            f"None of the feedback is on these questions: {questions.path}. Check that both belong together."
        )
    return RetrieverExamples(tuple(found), len(questions) - len(found))


def _gains(feedback: Mapping[str, float], question: str, items: Iterable[str]) -> tuple[float, ...]:
    return tuple(feedback[item_key(question, item)] for item in items)
