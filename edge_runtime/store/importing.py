"""Reads files that a profile store can import: requests, users, LaMP questions, CoGenesis records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.errors import RequestError
from edge_runtime.request import load_json, parse_context
from edge_runtime.store.item import NewItem, filled, iso_date, parse_lamp_date, storable


@dataclass(frozen=True, slots=True)
class Incoming:
    """One user's data from a file; the profile is "" if the file has none."""

    profile: str
    items: tuple[NewItem, ...]


@dataclass(frozen=True, slots=True)
class LampFields:
    """The fields of a LaMP profile item for title (None if it has none) and text, and whether the title is searched."""

    title: str | None
    text: str
    title_counts: bool


LAMP_FIELDS = {
    "LaMP-1": LampFields("title", "abstract", True),
    "LaMP-2": LampFields("tag", "description", False),
    "LaMP-2-news": LampFields("title", "text", True),
    "LaMP-3": LampFields("score", "text", False),
    "LaMP-4": LampFields("title", "text", True),
    "LaMP-5": LampFields("title", "abstract", True),
    "LaMP-6": LampFields("title", "text", False),
    "LaMP-7": LampFields(None, "text", False),
}
LAMP_ALIASES = {"lamp-2m": "LaMP-2", "lamp-2n": "LaMP-2-news"}
"""Other names of tasks in people's files, in lower case with hyphens: films and news, the second task's variants."""


def read_import(path: Path | str, task: str | None = None, user: str | None = None) -> Incoming:
    """Read a file.

    Args:
        path: a request or user file (an object; history items may have a `date`), LaMP questions or CoGenesis records
            (lists).
        task: LaMP task of the questions, such as "LaMP-5"; None for other files.
        user: the user whose entries to read from a list: a `user_id`, or the `id` or `tid` of one entry. None if the
            list has only one user.

    Raises:
        RequestError: the file is of another kind, lacks the user, or contains a malformed value.
    """
    body = load_json(path)
    if isinstance(body, list):
        return _from_list(body, path, task, user)
    if task is not None or user is not None:
        raise RequestError(f"This file is of one user and no task: {path}. Leave out `task` and `user`.")
    if not isinstance(body, dict) or not {"context", "profile", "history"} & body.keys():
        raise RequestError(
            f"There is nothing to import: {path} has no context, profile or history. Choose a request or user file, "
            "LaMP questions or CoGenesis records."
        )
    prefix, value = ("context", body["context"]) if "context" in body else ("", body)
    context = parse_context(value, path, prefix)
    raw = (value or {}).get("history") or ()
    items = [
        NewItem(
            item.title, item.text, iso_date(extra.get("date")), _origin(extra), extra.get("title_counts") is not False
        )
        for item, extra in zip(context.history, raw, strict=True)
    ]
    return Incoming(context.profile, tuple(items))


def _origin(item: Mapping[str, Any]) -> str | None:
    value = item.get("origin")
    return storable("origin", value) if isinstance(value, str) else None


def _from_list(body: list[Any], path: Path | str, task: str | None, user: str | None) -> Incoming:
    if not body or not all(isinstance(entry, dict) for entry in body):
        raise RequestError(f"There is nothing to import: {path} must be a list of objects, and not empty.")
    records = task is None
    if records and "tid" not in body[0] and "conversations" not in body[0]:
        raise RequestError(f"These are questions of LaMP: {path}. Set `task` to theirs, from LaMP-1 to LaMP-7.")
    fields = None if task is None else _lamp_fields(task)
    entries = _entries_of(body, path, user, "tid" if records else "id")
    profile, items = "", []
    for index, entry in entries:
        where = f"{path}, [{index}].profile"
        listed = entry.get("profile")
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise RequestError(f"This file can't be imported: {where} must be a list of objects. Correct it.")
        if fields is None:
            if entry.get("additional_profile") is not None:
                profile = _value(entry, "additional_profile", f"{path}, [{index}]")
            items += [_record_item(item, f"{where}[{number}]") for number, item in enumerate(listed)]
        else:
            items += [_lamp_item(item, fields, f"{where}[{number}]") for number, item in enumerate(listed)]
    return Incoming(profile, tuple(items))


def _lamp_fields(task: str) -> LampFields:
    wanted = task.strip().replace("_", "-").lower()
    wanted = LAMP_ALIASES.get(wanted, wanted).lower()
    for name, fields in LAMP_FIELDS.items():
        if name.lower() == wanted:
            return fields
    raise RequestError(f"There is no task '{task}'. Use one of: {', '.join(LAMP_FIELDS)}.")


def _entries_of(
    body: list[dict[str, Any]], path: Path | str, user: str | None, own_id: str
) -> list[tuple[int, dict[str, Any]]]:
    names = [str(entry.get(own_id) if entry.get("user_id") is None else entry["user_id"]) for entry in body]
    if user is None:
        if len(set(names)) > 1:
            raise RequestError(
                f"There are {len(set(names)):,} users in this file: {path}. Set `user` to the one whose texts to take; "
                f"the first is {names[0]}."
            )
        return list(enumerate(body))
    entries = [(index, entry) for index, entry in enumerate(body) if user in (names[index], str(entry.get(own_id)))]
    if not entries:
        raise RequestError(f"There is no user {user} in this file: {path}. The first is {names[0]}.")
    return entries


def _record_item(item: Mapping[str, Any], where: str) -> NewItem:
    return NewItem(_value(item, "title", where), filled("text", _value(item, "text", where)))


def _lamp_item(item: Mapping[str, Any], fields: LampFields, where: str) -> NewItem:
    return NewItem(
        "" if fields.title is None else _value(item, fields.title, where),
        _value(item, fields.text, where),
        _lamp_date(item.get("date"), where),
        _value(item, "id", where),
        fields.title_counts,
    )


def _value(item: Mapping[str, Any], key: str, where: str) -> str:
    """Return a field's text; a whole number becomes text."""
    value = item.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RequestError(f"This file can't be imported: {where} must have a text '{key}'. Check `task`.")
    return storable(key, value)


def _lamp_date(value: object, where: str) -> str | None:
    if value is None:
        return None
    try:
        return parse_lamp_date(str(value)).isoformat()
    except ValueError:
        raise RequestError(
            f"This file can't be imported: the date of {where} is not of the form Y-M-D. Correct it."
        ) from None
