"""Reads JSON as language models write it: in prose and code fences, with loose commas and quotes, or cut off."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from edge_runtime.extras import require_packages

if TYPE_CHECKING:
    from collections.abc import Callable

# The repair's time grows with the square of the length: some seconds for this many characters at the worst.
_LONGEST_REPAIR = 8192
_START = re.compile(r"[{\[]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NUMBER = re.compile("\ue000(\\d{1,4})\ue001")
# A text in double quotes, or one in single quotes, which may hold apostrophes.
_QUOTED = re.compile(
    r"""  "(?:\\.|[^"\\])*"(?=\s*(?:[,:}\]]|\Z))  |  (?<=[{\[,:])(\s*)'((?:\\.|[^\\])*?)'(?=\s*(?:[,:}\]]|\Z))  """,
    re.DOTALL | re.VERBOSE,
)


def read_lenient_json(text: str) -> Any:
    """The first object or list in a text.

    Valid JSON is read as what it is. Otherwise commas may be missing or too many, quotes single, curly or left out,
    line breaks in texts bare, Python's words used, comments strewn in; and what was not closed when the text ended is
    closed, without a value that had not begun.

    Raises:
        ValueError: there is none, it is nested too deeply, or it is not valid and too long to be repaired.
        MissingExtraError: it is not valid, and the package that repairs it is not installed.
    """
    start = _START.search(text)
    if start is None:
        raise ValueError("there is no JSON in it")
    try:
        try:
            return json.JSONDecoder(strict=False).raw_decode(text, start.start())[0]
        except ValueError:
            return _repaired(text[start.start() :])
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _repaired(text: str) -> Any:
    if len(text) > _LONGEST_REPAIR:
        raise ValueError(f"the JSON is not valid, and longer than the {_LONGEST_REPAIR:,} characters that are repaired")
    require_packages("Repairing a model's JSON", "json_repair", extra="endpoint")
    # The parser itself, because the package's functions mix all JSON of a text, or give the last. Imported here,
    # because commands that ask no model work without it.
    from json_repair.json_parser import JSONParser

    texts: list[str] = []

    def set_aside(match: re.Match[str]) -> str:
        """Leave a number in place of a whole text, because the parser strips line breaks at a text's end."""
        space, content = match.groups()
        try:
            texts.append(json.loads(match.group() if content is None else _in_double_quotes(content), strict=False))
        except ValueError:
            return match.group()
        return f'{space or ""}"\ue000{len(texts) - 1}\ue001"'

    # The parser knows all of JSON's escapes but these two.
    known = _ESCAPE.sub(lambda found: {"f": "\f", "/": "/"}.get(found[1], found[0]), _QUOTED.sub(set_aside, text))
    found = JSONParser(known, None, logging=False).parse_json()
    if isinstance(found, dict) is not text.startswith("{"):
        return {}  # of which no value had begun: the parser takes it for a set, and gives a list

    def put_back(match: re.Match[str]) -> str:
        return texts[int(match[1])] if int(match[1]) < len(texts) else match[0]

    return _in_each_text(found, lambda part: _whole_characters(_NUMBER.sub(put_back, part)))


def _in_double_quotes(content: str) -> str:
    return json.dumps(content.replace("\\'", "'"), ensure_ascii=False)


def _in_each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {_in_each_text(key, change): _in_each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_each_text(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _whole_characters(text: str) -> str:
    """Join the halves of characters that JSON writes as two escapes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
