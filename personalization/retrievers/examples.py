"""Builds a retriever's training examples: a question's query, some profile items, and the gain of each item."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from personalization.errors import DataError
from personalization.lamp.shown_items import item_key

if TYPE_CHECKING:
    from personalization.lamp.questions import QuestionFile

FEWEST = 2
"""Minimum number of items with feedback per question: with a single item there is no choice."""


@dataclass(frozen=True, slots=True)
class RetrieverExample:
    """A retriever's training example, from one question.

    Attributes:
        query: the query for the profile.
        documents: the items' texts.
        gains: gain of each item, higher is better.
    """

    query: str = field(repr=False)
    documents: tuple[str, ...] = field(repr=False)
    gains: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RetrieverExamples:
    """Questions to learn from, and the number of questions with feedback on too few items."""

    examples: tuple[RetrieverExample, ...]
    skipped: int


def retriever_examples(
    questions: QuestionFile, feedback: Mapping[str, float], *, most: int, use_date: bool = False
) -> RetrieverExamples:
    """Combine questions and feedback.

    Args:
        questions: the questions of the feedback, preferably in the order of a ranking.
        feedback: see `read_item_feedback`.
        most: maximum number of items per question; the first ones with feedback are used.
        use_date: append their dates to the items' texts.

    Raises:
        DataError: a question does not have the task's form, or no question has an item with feedback.
    """
    found = []
    known = 0
    for question in questions:
        valued = [item for item in question.profile if item_key(question.id, item.id) in feedback][:most]
        known += len(valued)
        if len(valued) < FEWEST:
            continue
        bad = next((item for item in valued if item.bad_date), None) if use_date else None
        if bad is not None:
            raise DataError(
                f"A date can't be used: {questions.path}, {bad.bad_date}. Correct it, or leave out `use_date`."
            )
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
