"""Reads a file with one large JSON array of objects, one object at a time, so memory does not limit its size."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalization.errors import DataError
from personalization.files.reading import reading

_BLOCK = 1 << 20
_SPACE = " \t\r\n"
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Element:
    """One object of the array and its location: `start` and `length` in bytes of the file."""

    body: dict[str, Any]
    start: int
    length: int


class JsonArrayScan:
    """One pass over such a file; `sha256` is the file's digest after the last element."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes of the file, lower-case hex."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Element]:
        """Yield the elements in order.

        Raises:
            DataError: the file can't be read, or is not an array of objects.
        """
        try:
            with reading(self.path):
                yield from self._elements()
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"The file is not a JSON list of objects: {self.path} ({reason}).") from None

    def _elements(self) -> Iterator[Element]:
        text = _Text(self.path, self._hash)
        if text.next_character() != "[":
            raise ValueError("it must begin with '['")
        text.skip(1)
        separated, count = True, 0
        while (character := text.next_character()) != "]":
            if character == "," and not separated:
                text.skip(1)
                separated = True
                continue
            if not character or not separated:
                raise ValueError(
                    f"it ends within the list, after element {count}"
                    if not character
                    else f"',' or ']' is missing after element {count}"
                )
            if character != "{":
                raise ValueError(f"element {count + 1} is not an object")
            start = text.place
            body = text.take_value(count + 1)
            yield Element(body, start, text.place - start)
            separated, count = False, count + 1
        if separated and count:
            raise ValueError(f"a ',' without an element follows element {count}")
        text.skip(1)
        if text.next_character():
            raise ValueError("something follows the list")


def read_element(path: Path, start: int, length: int) -> dict[str, Any]:
    """Read one element again from its location.

    Raises:
        DataError: the element is no longer there.
    """
    try:
        with reading(path), path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        body = json.loads(content.decode())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise DataError(f"The file was changed while it was read: {path}. Run the command again.")
    return body


class _Text:
    """The text read from the file so far, from the first character not yet consumed."""

    def __init__(self, path: Path, digest: Any) -> None:
        self._file = path.open("rb")
        self._digest = digest
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._ended = False
        self.place = 0

    def next_character(self) -> str:
        """Return the next character that is not white space, or "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in _SPACE and not (character == _BYTE_ORDER_MARK and self.place == 0):
                    return character
                self.skip(1)
            if not self._more(_BLOCK):
                return ""

    def skip(self, characters: int) -> None:
        """Consume this many characters."""
        self.place += len(self._text[self._at : self._at + characters].encode())
        self._at += characters

    def take_value(self, number: int) -> Any:
        """Consume the JSON value that starts here, element `number`."""
        block = _BLOCK
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                # The value may only be incomplete. Doubling the block keeps the total work linear.
                if not self._more(block):
                    raise ValueError(f"element {number}: {error.msg}") from None
                block *= 2
            else:
                self.skip(end - self._at)
                return value

    def _more(self, size: int) -> bool:
        if self._ended:
            return False
        data = self._file.read(size)
        self._digest.update(data)
        self._ended = not data
        if self._ended:
            self._file.close()
        self._text, self._at = self._text[self._at :] + self._decode(data, final=self._ended), 0
        return not self._ended
