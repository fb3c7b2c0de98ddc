"""Reads CoGenesis' structured records: a user's past texts become tasks and answers, the conversation a question."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from personalization.errors import DataError
from personalization.files.json_file import list_field, read_json, text_field
from personalization.users.data import Pair, UserFile
from personalization.users.groups import UserEntry, group_users

COGENESIS = "CoGenesis"
"""Name of the task."""

_NAME = re.compile(r"^Name:[ \t]*(\S.*?)\s*$", re.MULTILINE)


def read_records(path: Path) -> UserFile:
    """Read a file of records.

    Args:
        path: `[{"tid", "conversations": [{"value": task}, {"value": answer}], "profile": [{"title", "text"}],
            "additional_profile"?, "user_id"?}]`. A user is a `user_id`, or else the first two parts of
            `tid` (`portrait_user_task`). The published records give several people the same two parts: where profiles
            under them have different names, each person is a user by the whole `tid` of their first record.

    Raises:
        DataError: the file is not of this form.
    """
    body = read_json(path)
    if not isinstance(body, list):
        raise DataError(f"This is not a file of CoGenesis records: {path}. It must be a list of records.")
    return group_users(COGENESIS, _entries(body))


def _entries(records: list[Any]) -> Iterator[tuple[str, partial[UserEntry]]]:
    people: dict[str, dict[str, str]] = defaultdict(dict)  # two parts -> person's name -> tid of the first record
    marks: list[tuple[str, str] | None] = []
    for record in records:
        tid, named = (record.get("tid"), record.get("additional_profile")) if isinstance(record, dict) else (None, None)
        if not isinstance(tid, str) or not tid or record.get("user_id") is not None:
            marks.append(None)
            continue
        mark = "_".join(tid.split("_")[:2]), _name(named)
        people[mark[0]].setdefault(mark[1], tid)
        marks.append(mark)
    for index, (record, found) in enumerate(zip(records, marks, strict=True)):
        where = f"record {index}"
        if found is not None:
            group, person = found
            user = group if len(people[group]) == 1 else people[group][person]
        else:
            explicit = record.get("user_id") if isinstance(record, dict) else None
            user = explicit if isinstance(explicit, str) and explicit else where
        yield user, partial(_entry, record, where)


def _name(profile: object) -> str:
    match = _NAME.search(profile) if isinstance(profile, str) else None
    return match.group(1) if match else ""


def _entry(record: Any, where: str) -> UserEntry:
    if not isinstance(record, dict):
        raise DataError(f"{where} must be an object")
    if record.get("user_id") is not None:
        text_field(record, "user_id", where)
    else:
        where = f"record {text_field(record, 'tid', where)}"
    pairs = []
    for number, item in enumerate(list_field(record, "profile", where)):
        at = f"profile[{number}] of {where}"
        title, text = text_field(item, "title", at).strip(), text_field(item, "text", at).strip()
        pairs.append(Pair(title, text) if title and text else None)
    profile = text_field(record, "additional_profile", where) if "additional_profile" in record else ""
    return UserEntry(pairs, _question(record, where), profile.strip())


def _question(record: dict[str, Any], where: str) -> list[Pair]:
    if "conversations" not in record:
        return []
    turns = list_field(record, "conversations", where)
    if len(turns) != 2:
        raise DataError(f"'conversations' of {where} must be a task and its answer")
    task, answer = (text_field(turn, "value", f"conversations[{i}] of {where}") for i, turn in enumerate(turns))
    return [Pair(task.strip(), answer.strip())]
