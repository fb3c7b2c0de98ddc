"""Reads a request file: the public instruction and, apart from it, the private context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import RequestError

_FORM = 'A request is {"instruction": str, "context": {"profile": str, "history": [{"title": str, "text": str}]}}.'


@dataclass(frozen=True, slots=True)
class Request:
    """What to write, and what only this device knows."""

    instruction: PublicInstruction
    context: PrivateContext = field(default_factory=PrivateContext)


def load_request(path: Path | str) -> Request:
    """Read a request file.

    Raises:
        RequestError: the file can't be read, is not JSON, or a field is missing or of the wrong form.
    """
    body = load_json(path)
    if not isinstance(body, dict):
        raise RequestError(f"The request is not valid: {path}, it is not a JSON object. {_FORM}")
    return Request(
        parse_instruction(_text(body, "instruction", "instruction", path), path),
        parse_context(body.get("context"), path, "context"),
    )


def load_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        RequestError: it can't be read or is not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text)
    except FileNotFoundError:
        raise RequestError(f"There is no such request file: {path}. Check its name.") from None
    except OSError as error:
        raise RequestError(f"The request can't be read: {path} ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise RequestError(f"The request is not UTF-8 text: {path}. Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"The request is not valid JSON: {path} ({reason}). {_FORM}") from None


def parse_instruction(text: str, path: Path | str) -> PublicInstruction:
    """Check an instruction.

    Raises:
        RequestError: it is empty.
    """
    if not text.strip():
        raise RequestError(f"The request is not valid: {path}, instruction is empty. Say what should be written.")
    return PublicInstruction(text)


def parse_context(value: object, path: Path | str, prefix: str = "") -> PrivateContext:
    """Check a private context.

    Args:
        value: {"profile": str, "history": [{"title": str, "text": str}]}, both optional, or None; other keys are
            left alone.
        path: the file, for messages.
        prefix: what the value is called in the file, "" where it is the file itself.

    Raises:
        RequestError: a field is missing or of the wrong form; the message names it, and never quotes private text.
    """
    if value is None:
        return PrivateContext()
    if not isinstance(value, dict):
        raise _wrong(path, prefix or "the file", "must be an object")
    dot = f"{prefix}." if prefix else ""
    profile = _text(value, "profile", f"{dot}profile", path) if value.get("profile") is not None else ""
    history = value.get("history")
    if history is None:
        return PrivateContext(profile)
    if not isinstance(history, list):
        raise _wrong(path, f"{dot}history", "must be a list")
    items = []
    for index, item in enumerate(history):
        name = f"{dot}history[{index}]"
        if not isinstance(item, dict):
            raise _wrong(path, name, "must be an object")
        items.append(
            HistoryItem(_text(item, "title", f"{name}.title", path), _text(item, "text", f"{name}.text", path))
        )
    return PrivateContext(profile, tuple(items))


def _text(body: Mapping[str, Any], key: str, name: str, path: Path | str) -> str:
    if key not in body:
        raise _wrong(path, name, "is missing")
    value = body[key]
    if not isinstance(value, str):
        raise _wrong(path, name, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(path, name, "holds half of a surrogate pair, which is no character") from None
    return value


def _wrong(path: Path | str, name: str, problem: str) -> RequestError:
    return RequestError(f"The request is not valid: {path}, {name} {problem}. {_FORM}")
