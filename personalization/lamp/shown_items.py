"""Chooses what of LaMP's questions is shown to a model: the first profile items of each, or each item alone."""

from __future__ import annotations

from collections.abc import Iterator

from personalization.errors import DataError
from personalization.lamp.answers import Asked
from personalization.lamp.questions import Question, QuestionFile


def with_first_items(questions: QuestionFile, limit: int | None, count: int, *, own_adapter: bool) -> list[Asked]:
    """Ask each question with its first profile items; in a merged file, those that are ranked first.

    Args:
        questions: the file.
        limit: only its first so many questions.
        count: most items of a question; 0 for no personalization.
        own_adapter: answer with the adapter of the user who asks.
    """
    return [
        Asked(
            question.id,
            question.id,
            question.input,
            tuple(item.fields for item in question.profile[:count]),
            question.user if own_adapter else None,
        )
        for question in _first(questions, limit)
    ]


def with_each_item(questions: QuestionFile, limit: int | None, most: int, *, own_adapter: bool) -> list[Asked]:
    """Ask each question once for each of its first profile items, with that item alone; keys are `item_key`'s.

    Args:
        questions: the file.
        limit: only its first so many questions.
        most: items of a question.
        own_adapter: see `with_first_items`.
    """
    asked: dict[str, Asked] = {}
    for question in _first(questions, limit):
        for item in question.profile[:most]:
            key = item_key(question.id, item.id)
            user = question.user if own_adapter else None
            asked.setdefault(key, Asked(key, question.id, question.input, (item.fields,), user))
    return list(asked.values())


def gold_outputs(questions: QuestionFile, limit: int | None) -> dict[str, str]:
    """Gold outputs of the questions that have one, by the question's id.

    Args:
        questions: the file.
        limit: only its first so many questions.
    """
    return {question.id: question.output for question in _first(questions, limit) if question.output is not None}


def all_gold_outputs(questions: QuestionFile, limit: int | None) -> dict[str, str]:
    """Gold outputs of questions that all must have one; see `gold_outputs`.

    Raises:
        DataError: some have none.
    """
    golds = gold_outputs(questions, limit)
    missing = [identity for identity in questions.ids[:limit] if identity not in golds]
    if missing:
        raise DataError(
            f"{len(missing)} questions have no gold output: {questions.path}, the first is '{missing[0]}'. Merge the "
            "questions with their outputs: `cogenesis lamp merge`."
        )
    return golds


def _first(questions: QuestionFile, limit: int | None) -> Iterator[Question]:
    return (questions[index] for index in range(len(questions))[:limit])


def item_key(question: str, item: str) -> str:
    """What a profile item of a question is called in a feedback file."""
    return f"{question}-{item}"
