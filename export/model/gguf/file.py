"""Reads the header of a GGUF file fast: metadata and tensors; the weights stay on disk until they are used.

The `gguf` package's own reader turns each token into several arrays, and takes a hundred times as long.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape

from export.errors import SourceError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_MOST_NESTED = 4
_STRING, _ARRAY = 8, 9
# The value types of the format by number.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_PLAIN: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.I8: np.dtype("<i1"),
    GGMLQuantizationType.I16: np.dtype("<i2"),
    GGMLQuantizationType.I32: np.dtype("<i4"),
    GGMLQuantizationType.I64: np.dtype("<i8"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a file, with the attributes of the `gguf` package's `ReaderTensor`.

    Attributes:
        name: as in the file.
        tensor_type: how its numbers are stored.
        shape: the fastest dimension first, as GGUF has it: (in_features, out_features) of a matrix.
        path: the file that holds it.
        offset: of its first byte in the file.
    """

    name: str
    tensor_type: GGMLQuantizationType
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def n_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes in the file."""
        numbers, size = GGML_QUANT_SIZES[self.tensor_type]
        return self.n_elements // int(numbers) * int(size)

    @property
    def data(self) -> NDArray[Any]:
        """The stored numbers, mapped from the file, the fastest dimension last; quantized ones as rows of uint8."""
        shape = tuple(reversed(self.shape))
        plain = _PLAIN.get(self.tensor_type)
        if plain is not None:
            return np.memmap(self.path, plain, "r", self.offset, shape)
        return np.memmap(self.path, np.uint8, "r", self.offset, quant_shape_to_byte_shape(shape, self.tensor_type))


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """The header of a GGUF file: `fields` by name, each a Python value or a list of them, and the tensors."""

    path: Path
    fields: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a file.

    Raises:
        SourceError: the file can't be read, is no GGUF file, or is damaged or incomplete.
        UnsupportedModelError: its version, byte order or a tensor's type is unknown.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Header(path, mapped).parse()
    except (OSError, ValueError, struct.error, IndexError, OverflowError, MemoryError) as error:
        cause = str(error) or type(error).__name__
        raise SourceError(f"This is not a usable GGUF file: {path} ({cause}). Download it again.") from None


@dataclass(slots=True)
class _Header:
    path: Path
    content: mmap.mmap
    position: int = 0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.content)

    def parse(self) -> GGUFFile:
        if self._take(4) != _MAGIC:
            raise ValueError("it does not start with 'GGUF'")
        version = self._u32()
        if version not in _VERSIONS:
            kind = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
            raise UnsupportedModelError(
                f"GGUF files that are {kind} can't be read: {self.path}. Use one that was made by today's llama.cpp."
            )
        tensor_count, field_count = self._u64(), self._u64()
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            name = self._string()
            if name in fields:
                raise ValueError(f"the field '{name}' is there twice")
            fields[name] = self._value(self._u32())
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = int(fields.get("general.alignment", _ALIGNMENT))
        if alignment <= 0:
            raise ValueError("its alignment is not positive")
        start = -(-self.position // alignment) * alignment
        return GGUFFile(self.path, fields, self._tensors(infos, start))

    def _tensors(self, infos: list[tuple[str, tuple[int, ...], int, int]], start: int) -> tuple[GGUFTensor, ...]:
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, number, offset in infos:
            try:
                kind = GGMLQuantizationType(number)
            except ValueError:
                raise UnsupportedModelError(
                    f"The tensor '{name}' is stored in a form that is not known, number {number}: {self.path}."
                ) from None
            tensor = GGUFTensor(name, kind, shape, self.path, start + offset)
            if name in tensors:
                raise ValueError(f"the tensor '{name}' is there twice")
            if shape[0] % GGML_QUANT_SIZES[kind][0]:
                raise ValueError(f"the rows of the tensor '{name}' are no whole blocks")
            if tensor.offset + tensor.n_bytes > self.size:
                raise ValueError(f"it ends before the tensor '{name}' does")
            tensors[name] = tensor
        return tuple(tensors.values())

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._u32()
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"the tensor '{name}' has {dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(dimensions))
        return name, shape, self._u32(), self._u64()

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            if depth == _MOST_NESTED:
                raise ValueError("its arrays are nested too deeply")
            inner, count = self._u32(), self._u64()
            if count > self.size - self.position:
                raise ValueError("an array is longer than the file")
            if inner == _STRING:
                return self._strings(count)
            if inner == _ARRAY:
                return [self._value(inner, depth + 1) for _ in range(count)]
            return self._numbers(inner, count).tolist()
        return self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> NDArray[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"a value is of the unknown type {kind}")
        dtype = _SCALARS[kind]
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _strings(self, count: int) -> list[str]:
        """Read strings in a row; this loop is where a vocabulary's time goes."""
        content, position, size, length_at = self.content, self.position, self.size, _U64.unpack_from
        strings = []
        for _ in range(count):
            (length,) = length_at(content, position)
            start = position + 8
            position = start + length
            if position > size:
                raise ValueError("it ends inside its metadata")
            strings.append(content[start:position].decode())
        self.position = position
        return strings

    def _string(self) -> str:
        return self._take(self._u64()).decode()

    def _u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > self.size:
            raise ValueError("it ends inside its metadata")
        taken = self.content[self.position : end]
        self.position = end
        return taken
