"""Checks what a model replies in each step of making data; what can be mended is, all else says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from personalization.answering.chat_endpoint import Reply
from personalization.collab.synthesis.lenient_json import read_lenient_json

_MOST_ENTRIES = 10
_FIELDS = {  # label in the profile, and the fewest entries
    "age": ("Age", 1),
    "name": ("Name", 1),
    "occupation": ("Occupation", 1),
    "location": ("Location", 1),
    "personal_traits": ("Personal_traits", 2),
    "writing_style": ("Writing_style", 2),
    "privacy_info": ("Privacy_info", 5),
    "smart_device_usage": ("Smart_device_usage", 2),
    "ai_assistant_usage": ("Ai_assistant_usage", 1),
}
_FEWEST_WORDS = {"portrait": 3, "title": 3, "text": 40}
_MOST_WORDS = {"portrait": 60, "title": 40}
_PLACEHOLDER = re.compile(r"\[[A-Z][^\]\n]{2,40}\]|\{[a-z_ ]{3,30}\}|<[a-z_ ]{3,30}>")
_REFUSAL = re.compile(r"\A\W*(?:i(?:.m| am) (?:sorry|unable)|i can(?:not|.t) |as an ai\b)", re.IGNORECASE)
_CHATTER = re.compile(r"\A(?:sure|certainly|of course|here(?:.s| is| are))\b[^\n]{0,120}:\s*\n+", re.IGNORECASE)


def read_portraits(reply: Reply) -> list[str]:
    """Descriptions of groups; at least one.

    Raises:
        ValueError: there is none.
    """
    found = [_line(item) for item in _list(read_lenient_json(reply.text))]
    portraits = [text for text in found if _has_length(text, "portrait")]
    if not portraits:
        raise ValueError("it is no list of descriptions in words")
    return portraits


def read_character(reply: Reply) -> dict[str, str]:
    """A person: `name`, and `profile` in the lines of the authors' data.

    Raises:
        ValueError: a field is missing, empty or too short.
    """
    body = read_lenient_json(reply.text)
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        raise ValueError("it is no JSON object")
    body = {re.sub(r"[\W_]+", "_", key.strip().lower()): value for key, value in body.items()}
    lines = []
    for key, (label, fewest) in _FIELDS.items():
        items = [line for line in map(_line, _list(body.get(key))) if line]
        if len(items) < fewest:
            raise ValueError(f'the field "{key}" has {len(items)} entries instead of {fewest} or more')
        lines.append(f"{label}: {'; '.join(items[:_MOST_ENTRIES])}")
    return {"name": _line(_list(body["name"])[0]), "profile": "\n".join(lines)}


def read_tasks(reply: Reply, count: int) -> list[dict[str, str]]:
    """Tasks, each with `title` and `detail`; at most `count`, at least half of them.

    Raises:
        ValueError: there are fewer.
    """
    tasks = []
    for item in _list(read_lenient_json(reply.text)):
        if isinstance(item, Mapping):
            title, detail = _line(item.get("title")), _line(item.get("detail"))
            # A colon within the title would move part of it to what is private.
            title = title.rstrip(".:").replace(": ", " - ")
            if _has_length(title, "title") and detail:
                tasks.append({"title": title, "detail": detail})
    if len(tasks) * 2 < count:
        raise ValueError(f"it has {len(tasks)} objects with a title and a detail instead of {count}")
    return tasks[:count]


def read_text(reply: Reply) -> str:
    """A finished text, without what models say around it.

    Raises:
        ValueError: it is cut, too short, a refusal, or has places left open.
    """
    text = _CHATTER.sub("", reply.text).strip().strip('"').strip()
    if reply.cut:
        raise ValueError("it is too long and was cut off")
    if _REFUSAL.match(text):
        raise ValueError("it is a refusal")
    if placeholder := _PLACEHOLDER.search(text):
        raise ValueError(f"it has a placeholder: {placeholder.group()}")
    if not _has_length(text, "text"):
        raise ValueError(f"it has fewer than {_FEWEST_WORDS['text']} words")
    return text


def _list(value: Any) -> list[Any]:
    """A list, whatever a model puts in its place: the list within an object, one item, a text with semicolons."""
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        inner = [item for item in value.values() if isinstance(item, list)]
        return inner[0] if len(inner) == 1 else list(value.values())
    if isinstance(value, str):
        return re.split(r";|\n", value)
    return [] if value is None else [value]


def _line(value: Any) -> str:
    """A value as one line of text; lists and objects within are joined."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        value = ", ".join(map(_line, value))
    if value is None or isinstance(value, bool):
        return ""
    return " ".join(str(value).encode(errors="replace").decode().split())  # JSON may name half of a surrogate pair


def _has_length(text: str, kind: str) -> bool:
    return _FEWEST_WORDS[kind] <= len(text.split()) <= _MOST_WORDS.get(kind, len(text))
