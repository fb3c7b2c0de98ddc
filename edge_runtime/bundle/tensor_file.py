"""Reads the header of a safetensors file from a stranger: every number in it is checked before anything is believed."""

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
    """Where a tensor lies: `dtype` (of `ITEM_SIZES`), `shape`, and its bytes, counted from behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A file's header: what it says of itself, its tensors by name, and its own `size` in bytes, length included."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorPlace]
    size: int

    def canonical(self, *, without: str) -> bytes:
        """The header as JSON that does not depend on who wrote it, without one of its metadata (such as its digest)."""
        body: dict[str, Any] = {
            name: {"dtype": place.dtype, "shape": place.shape, "data_offsets": (place.start, place.end)}
            for name, place in self.tensors.items()
        }
        body["__metadata__"] = {name: text for name, text in self.metadata.items() if name != without}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def read_header(file: BinaryIO, file_size: int, item_sizes: Mapping[str, int] = ITEM_SIZES) -> TensorHeader:
    """Read the header at the beginning of an open file, and leave the file behind it.

    Args:
        file: open at its beginning.
        file_size: in bytes.
        item_sizes: the dtypes that its tensors may have, and the bytes of an item.

    Raises:
        ValueError: it is not one, or describes other bytes than the file has; the text says what is wrong.
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
    """Whether this is text that can be written again: JSON can spell halves of characters."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _sizes(values: Any) -> TypeGuard[list[int]]:
    """Whether these are few whole numbers, none of them negative or beyond what a file can hold."""
    return (
        isinstance(values, list) and len(values) <= 8 and all(type(one) is int and 0 <= one < 1 << 48 for one in values)
    )
