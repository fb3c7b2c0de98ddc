"""Reads the kinds of a GGUF file's tensors from its header, in a fraction of a second however large the vocabulary."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType as Kind

from export.errors import SourceError, UnsupportedModelError, UnsupportedQuantizationError
from export.model.gguf_blocks import EXACT

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by type
_STRING, _ARRAY = 8, 9
DENSE = frozenset({Kind.F32, Kind.F16, Kind.BF16})


def tensor_kinds(path: Path) -> dict[str, Kind]:
    """Read the kind of every tensor, by the file's own names.

    Raises:
        SourceError: the file is damaged.
        UnsupportedModelError: a tensor is of a kind that doesn't exist yet.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data, path).kinds()
    except (OSError, ValueError, struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise SourceError(f"This is not a usable GGUF file: {path} ({error}). Download it again.") from None


def refuse_what_can_not_be_kept(path: Path, carried: Collection[Kind] = EXACT, where: str = "") -> None:
    """Refuse a file with blocks that can't be carried over, before anything else of it is read.

    Args:
        path: a GGUF file.
        carried: the kinds of blocks that can.
        where: words for the runtime that can't, as in " for ExecuTorch".

    Raises:
        UnsupportedQuantizationError: a matrix is of another kind; the message names it.
        SourceError, UnsupportedModelError: see `tensor_kinds`.
    """
    for name, kind in tensor_kinds(path).items():
        if kind not in DENSE and kind not in carried:
            raise UnsupportedQuantizationError(
                f"The tensor '{name}' is quantized as {kind.name}, which can't be carried over exactly{where}: {path}. "
                "Use `quantize` int8."
            )


class _Header:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def kinds(self) -> dict[str, Kind]:
        magic, version, tensors, fields = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it starts with {magic!r}, version {version}")
        for _ in range(fields):
            self._text()
            self._skip(self._take("<I")[0])
        return dict(self._tensor() for _ in range(tensors))

    def _tensor(self) -> tuple[str, Kind]:
        name = self._text().decode()
        (dimensions,) = self._take("<I")
        *_, number, _ = self._take(f"<{dimensions}QIQ")
        try:
            return name, Kind(number)
        except ValueError:
            raise UnsupportedModelError(
                f"The tensor '{name}' is of kind {number}, which this version can't read: {self._path}."
            ) from None

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            inner, count = self._take("<IQ")
            if inner in _SIZES:
                self._at += _SIZES[inner] * count
                return
            for _ in range(count):
                self._skip(inner)
        else:
            self._at += _SIZES[kind] if kind in _SIZES else self._unknown(kind)

    def _unknown(self, kind: int) -> int:
        raise ValueError(f"a field of type {kind}")

    def _text(self) -> bytes:
        (length,) = self._take("<Q")
        start = self._at
        self._at += length
        if self._at > len(self._data):
            raise ValueError("it is cut off")
        return self._data[start : self._at]

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values
