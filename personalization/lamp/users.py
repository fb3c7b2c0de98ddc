"""Reads LaMP's questions: each user's profile items become tasks and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from personalization.errors import DataError
from personalization.files.json_file import label_field, list_field, read_json, text_field
from personalization.lamp.outputs import read_outputs
from personalization.lamp.tasks import LampTask
from personalization.users.data import Pair, UserFile
from personalization.users.groups import UserEntry, group_users


def read_lamp(questions: Path, task: LampTask, *, outputs: Path | None = None, seed: int = 0) -> UserFile:
    """Read a questions file.

    Args:
        questions: `[{"id", "input", "profile": [{...}], "user_id"?}]`. A user is a `user_id`, or, where there is
            none, a question.
        task: which of the tasks it is.
        outputs: the gold answers, `{"golds": [{"id", "output"}]}`; with them the questions are for evaluation.
        seed: where LaMP-7 cuts its tweets.

    Raises:
        DataError: a file is not of this form.
    """
    body = read_json(questions)
    if not isinstance(body, list):
        raise DataError(f"This is not a questions file of LaMP: {questions}. It must be a list of questions.")
    golds = {} if outputs is None else read_outputs(outputs).by_id
    return group_users(task.name, _entries(body, task, golds, seed))


def _entries(
    questions: list[Any], task: LampTask, golds: Mapping[str, str], seed: int
) -> Iterator[tuple[str, partial[UserEntry]]]:
    for index, question in enumerate(questions):
        where = f"question {index}"
        try:
            name = label_field(question, "id" if question.get("user_id") is None else "user_id", where)
        except (AttributeError, DataError):  # no object, or no id: nothing else to call it by
            name = where
        yield name, partial(_entry, question, where, task, golds, seed)


def _entry(question: Any, where: str, task: LampTask, golds: Mapping[str, str], seed: int) -> UserEntry:
    if not isinstance(question, dict):
        raise DataError(f"{where} must be an object")
    identity = label_field(question, "id", where)
    where = f"question {identity}"
    pairs = []
    for number, item in enumerate(list_field(question, "profile", where)):
        at = f"profile[{number}] of {where}"
        fields = {task.source: text_field(item, task.source, at)}
        if task.target is not None:
            fields[task.target] = label_field(item, task.target, at)
        pairs.append(task.pair(fields, seed))
    gold = golds.get(identity)
    asked = [] if gold is None else [Pair(text_field(question, "input", where).strip(), gold.strip())]
    return UserEntry(pairs, asked)
