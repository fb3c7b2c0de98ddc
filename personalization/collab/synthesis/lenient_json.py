"""Reads JSON as language models write it: in prose and code fences, with loose commas and quotes, or cut off."""

from __future__ import annotations

import json
import re
from typing import Any

_START = re.compile(r"[{\[]")
_SPACE = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_BARE = re.compile(r"[^\s,:{}\[\]\"]+(?:[ \t]+[^\s,:{}\[\]\"]+)*")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_AFTER_TEXT = re.compile(r"\s*(?:[,:}\]]|\Z)|\s+[\"\u201c]")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_DEEPEST = 50


def read_lenient_json(text: str) -> Any:
    """The first object or list in a text.

    Valid JSON is read as what it is. Otherwise commas may be missing or too many, quotes single, curly or left out,
    line breaks in texts bare, Python's words used, comments strewn in; and what was not closed when the text ended is
    closed, without a value that had not begun.

    Raises:
        ValueError: there is none, or it is nested too deeply.
    """
    start = _START.search(text)
    if start is None:
        raise ValueError("there is no JSON in it")
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start.start())[0]
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except ValueError:
        return _Reader(text, start.start()).value(0)


class _EndError(Exception):
    """The text ends where a value should begin."""


class _Reader:
    """A recursive descent over the grammar of JSON that goes on where something is wrong."""

    def __init__(self, text: str, at: int) -> None:
        self._text, self._at = text, at

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("the JSON is nested too deeply")
        character = self._next()
        if character == "{":
            return self._object(depth)
        if character == "[":
            return self._list(depth)
        return self._text_in_quotes(character) if character in _QUOTES else self._bare()

    def _object(self, depth: int) -> dict[str, Any]:
        self._at += 1
        found: dict[str, Any] = {}
        try:
            while (character := self._next()) not in "}]":
                if character in ",:":
                    self._at += 1
                    continue
                if character in "{[":  # no key: not an object's any more
                    break
                key = self._text_in_quotes(character) if character in _QUOTES else str(self._bare())
                if self._next() == ":":
                    self._at += 1
                found[key] = self.value(depth + 1)
            else:
                self._at += character == "}"  # a "]" closes the list around
        except _EndError:
            pass
        return found

    def _list(self, depth: int) -> list[Any]:
        self._at += 1
        found: list[Any] = []
        try:
            while (character := self._next()) not in "]}":
                if character in ",:":
                    self._at += 1
                else:
                    found.append(self.value(depth + 1))
            self._at += character == "]"
        except _EndError:
            pass
        return found

    def _next(self) -> str:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at
        if self._at >= len(self._text):
            raise _EndError
        return self._text[self._at]

    def _text_in_quotes(self, opening: str) -> str:
        closing, start = _QUOTES[opening], self._at + 1
        at = start
        while at < len(self._text):
            if self._text[at] == "\\":
                at += 2
            elif self._text[at] == closing and _AFTER_TEXT.match(self._text, at + 1):
                break  # other quotes are within the text
            else:
                at += 1
        self._at = min(at + 1, len(self._text))
        return _unescaped(self._text[start:at])

    def _bare(self) -> Any:
        match = _BARE.match(self._text, self._at)
        if match is None:  # a lone bracket
            self._at += 1
            return None
        self._at = match.end()
        word = match.group()
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        try:
            return json.loads(word)
        except ValueError:
            return word


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        return str(json.loads(f'"{match.group()}"'))

    return _ESCAPE.sub(one, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
