"""Reads JSON files with users' data; errors name file and field, but never quote a user's text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalization.errors import DataError
from personalization.files.reading import reading


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file can't be read or is not JSON.
    """
    with reading(path):
        text = Path(path).read_text(encoding="utf-8-sig")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"The file is not valid JSON: {path} ({reason}).") from None


def text_field(body: Mapping[str, Any], key: str, where: str) -> str:
    """Return a field that must be a text.

    Raises:
        DataError: the field is missing, no text, or has a lone surrogate.
    """
    if key not in body:
        raise DataError(f"{where} has no '{key}'")
    value = body[key]
    if not isinstance(value, str):
        raise DataError(f"'{key}' of {where} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"'{key}' of {where} holds half of a surrogate pair, which is no character") from None
    return value


def label_field(body: Mapping[str, Any], key: str, where: str) -> str:
    """Return a field that is a text or an integer, such as an id or a score, as text.

    Raises:
        DataError: the field is missing or something else.
    """
    value = body.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(body, key, where)


def list_field(body: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """Return a field that must be a list of objects.

    Raises:
        DataError: the field is missing or something else.
    """
    if key not in body:
        raise DataError(f"{where} has no '{key}'")
    value = body[key]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"'{key}' of {where} must be a list of objects")
    return value
