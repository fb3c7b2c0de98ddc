"""Reads the first fields of a GGUF file, so that what is not supported is refused before the rest is read.

The layout is that of ggml's docs/gguf.md: magic, version, two counts, then fields of name, type and value.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from export.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 24  # bytes of a string; a chat template has some thousand


def first_fields(path: Path) -> dict[str, Any]:
    """Return the fields that come before the first long list, which is the vocabulary; lists have no values here.

    Converters write all fields of the architecture before the vocabulary.

    Raises:
        SourceError: the file is not a GGUF file, or ends too early.
    """
    try:
        with path.open("rb") as file:
            magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise SourceError(f"This is not a usable GGUF file: {path} (no GGUF of version 2 or 3).")
            return _fields(file, count)
    except (OSError, struct.error, ValueError) as error:
        raise SourceError(f"This is not a usable GGUF file: {path} ({error}). Download it again.") from None


def _fields(file: BinaryIO, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        name = _string(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if kind == _STRING:
            found[name] = _string(file)
        elif kind in _NUMBERS:
            found[name] = _number(file, kind)
        elif kind == _ARRAY:
            inner, length = struct.unpack("<IQ", file.read(12))
            if inner not in _NUMBERS and (inner != _STRING or name == "tokenizer.ggml.tokens"):
                break
            if inner == _STRING:
                for _ in range(length):
                    _string(file)
            else:
                file.seek(length * struct.calcsize(f"<{_NUMBERS[inner]}"), 1)
        else:
            raise ValueError(f"the field {name!r} has the unknown type {kind}")
    return found


def _number(file: BinaryIO, kind: int) -> Any:
    code = f"<{_NUMBERS[kind]}"
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST:
        raise ValueError(f"a text of {length:,} bytes")
    content = file.read(length)
    if len(content) != length:
        raise ValueError("the file ends inside a field")
    return content.decode("utf-8", "replace")
