"""Reads the header of an untrusted safetensors file: every number is checked before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeGuard

ITEM_SIZES = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}
LENGTH_BYTES = 8
LONGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor's `dtype` (one of `ITEM_SIZES`), `shape`, and byte range, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A file's header: its metadata, its tensors by name, and its own `size` in bytes, including the length field."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorPlace]
    size: int

    def canonical(self, *, without: str) -> bytes:
        """Return the header as canonical JSON, the same from any writer, without one metadata entry (e.g. a digest)."""
        body: dict[str, Any] = {
            name: {"dtype": place.dtype, "shape": place.shape, "data_offsets": (place.start, place.end)}
            for name, place in self.tensors.items()
        }
        body["__metadata__"] = {name: text for name, text in self.metadata.items() if name != without}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def read_header(file: BinaryIO, file_size: int, item_sizes: Mapping[str, int] = ITEM_SIZES) -> TensorHeader:
    """Read the header of an open file, and leave the file position at its end.

    Args:
        file: the file, positioned at its beginning.
        file_size: size of the file in bytes.
        item_sizes: allowed dtypes of tensors, and the bytes per item of each.

    Raises:
        ValueError: the header is invalid, or does not match the file's bytes; the text says what is wrong.
    """
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if file_size < LENGTH_BYTES or not 2 <= length <= min(LONGEST_HEADER, file_size - LENGTH_BYTES):
        raise ValueError("it has no safetensors header")
    try:
        body = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError("its header is not a JSON object")
    metadata = body.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(_text(text) for text in metadata.values()):
        raise ValueError("its metadata are not texts")
    tensors = {name: _place(name, entry, item_sizes) for name, entry in body.items()}
    reached = 0
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != reached:
            raise ValueError(f"tensor '{name}' does not begin where the one before it ends")
        reached = place.end
    if reached != file_size - LENGTH_BYTES - length:
        raise ValueError(f"its tensors have {reached:,} bytes, the file {file_size - LENGTH_BYTES - length:,}")
    return TensorHeader(metadata, tensors, LENGTH_BYTES + length)


def _place(name: str, entry: Any, item_sizes: Mapping[str, int]) -> TensorPlace:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in item_sizes:
        raise ValueError(f"tensor '{name}' is none of {', '.join(item_sizes)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(fields) != 3:
        raise ValueError(f"tensor '{name}' lacks a shape or its place")
    if offsets[1] - offsets[0] != math.prod(shape) * item_sizes[dtype]:
        raise ValueError(f"tensor '{name}' does not have the bytes of its shape")
    return TensorPlace(dtype, tuple(shape), offsets[0], offsets[1])


def _text(value: Any) -> bool:
    """Whether this is text that UTF-8 can encode: JSON can contain lone surrogates."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _sizes(values: Any) -> TypeGuard[list[int]]:
    """Whether this is a short list of whole numbers, none negative or larger than any file size."""
    return (
        isinstance(values, list) and len(values) <= 8 and all(type(one) is int and 0 <= one < 1 << 48 for one in values)
    )
