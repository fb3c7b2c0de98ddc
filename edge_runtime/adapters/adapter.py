"""A user's LoRA adapter as the decoder takes it, and the file that carries it: one safetensors file, bound to its base.

All layers of a projection lie in one tensor, row by rank, so that a file has few tensors and is read at once: for
projection p, `p.lora_A` is (R, in_features) and `p.lora_B` (R, out_features), R being the sum of its ranks over the
layers, in their order. 8-bit rows have a scale each: `p.lora_A.scale` and `p.lora_B.scale`, (R,). The tensor `learned`
holds the texts that it was trained on (see `edge_runtime.adapters.learned_text`). See docs/adapters.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.learned_text import decode_learned
from edge_runtime.bundle.tensor_file import TensorHeader, read_header
from edge_runtime.context import PrivateContext
from edge_runtime.errors import AdapterError

ADAPTER_FORMAT = "cogenesis-adapter/1"
MAX_RANK = 1024
MAX_LAYERS = 4096
LARGEST_FILE = 1 << 30
HALVES = ("lora_A", "lora_B")
SCALE = ".scale"
LEARNED = "learned"
WEIGHTS = {"I8": "int8", "F16": "fp16", "F32": "fp32"}
"""How an adapter's weights may be stored: safetensors' name and ours."""

_DTYPES = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32}
_PROJECTION = re.compile(r"[a-z0-9_]{1,64}\Z")


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """LoRA matrices of one user, scaling folded into B.

    Attributes:
        base: `Bundle.base` of the model that it was trained on.
        fingerprint: the file's digest; two adapters with the same are the same.
        matrices: (layer, projection) to (A (in_features, r), B (r, out_features)), floating point.
        user: whose it is.
        name, base_name: for people.
        learned: the private texts that it was trained on; None where nobody knows.
    """

    base: str
    fingerprint: str
    matrices: Mapping[tuple[int, str], tuple[NDArray[np.floating], NDArray[np.floating]]] = field(repr=False)
    name: str = ""
    user: str = ""
    base_name: str = ""
    learned: PrivateContext | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that the matrices, and about those that the learned texts take in memory."""
        texts = () if self.learned is None else self.learned.history
        letters = sum(len(item.title) + len(item.text) for item in texts)
        return letters + sum(a.nbytes + b.nbytes for a, b in self.matrices.values())


@dataclass(frozen=True, slots=True)
class AdapterHeader:
    """What an adapter file says of itself, known without reading its weights.

    Attributes:
        base, user, name, base_name: see `Adapter`.
        created_by: name and version of the exporter.
        ranks: projection to its rank at each layer, 0 where it is not touched.
        weights: "fp16", "int8" or "fp32".
        sha256: digest of header and tensors; `load_adapter` compares it.
        size: of the file, in bytes.
    """

    base: str
    user: str
    name: str
    base_name: str
    created_by: str
    ranks: Mapping[str, tuple[int, ...]]
    weights: str
    sha256: str
    size: int

    @property
    def largest_rank(self) -> int:
        """The highest rank of any matrix."""
        return max(max(ranks) for ranks in self.ranks.values())

    @property
    def smallest_rank(self) -> int:
        """The lowest rank of any matrix that is there."""
        return min(rank for ranks in self.ranks.values() for rank in ranks if rank)


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter file, weights widened to float32.

    Raises:
        AdapterError: the file is missing, damaged, not an adapter, or holds numbers that are not finite.
    """
    with _opened(Path(path)) as (file, _):
        return _parsed(file.read())  # at once: the rest behind a header would be copied together from pieces


def parse_adapter(content: bytes, where: Path | str) -> Adapter:
    """The adapter that is the content of a file; `where` names it in messages.

    Raises:
        AdapterError: it is damaged, not an adapter, or holds numbers that are not finite.
    """
    try:
        return _parsed(content)
    except ValueError as error:
        raise _unreadable(where, error) from None


def read_adapter_header(path: Path | str) -> AdapterHeader:
    """Read what an adapter file says of itself, and not its weights: damage to those goes unnoticed.

    Raises:
        AdapterError: the file is missing, or not an adapter.
    """
    with _opened(Path(path)) as (file, size):
        return _header(read_header(file, size), size)


def adapter_digest(header: TensorHeader, data: bytes | memoryview) -> str:
    """What an adapter file's metadata `sha256` must be: over its header without that, and its tensors."""
    digest = hashlib.sha256(header.canonical(without="sha256"))
    digest.update(data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size; whatever is wrong in the block becomes an `AdapterError` with its path."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise ValueError("it is not a file")
        if found.st_size > LARGEST_FILE:
            raise ValueError(f"it has {found.st_size:,} bytes")
        with path.open("rb") as file:
            yield file, found.st_size
    except FileNotFoundError:
        raise AdapterError(f"There is no adapter here: {path}. Export it again.") from None
    except OSError as error:
        raise AdapterError(f"The adapter can't be read: {path} ({error.strerror}). Check who may read it.") from None
    except ValueError as error:
        raise _unreadable(path, error) from None


def _unreadable(where: Path | str, error: ValueError) -> AdapterError:
    return AdapterError(f"The adapter can't be read: {where} ({error}). Export it again.")


def _parsed(content: bytes) -> Adapter:
    tensors = read_header(io.BytesIO(content), len(content))
    header = _header(tensors, len(content))
    data = memoryview(content)[tensors.size :]
    if adapter_digest(tensors, data) != header.sha256:
        raise ValueError("its SHA-256 differs")
    matrices = dict(_matrices(header.ranks, tensors, data))
    learned = decode_learned(_array(tensors, LEARNED, data).tobytes()) if LEARNED in tensors.tensors else None
    return Adapter(header.base, header.sha256, matrices, header.name, header.user, header.base_name, learned)


def _header(tensors: TensorHeader, size: int) -> AdapterHeader:
    texts = tensors.metadata
    if texts.get("format") != ADAPTER_FORMAT:
        raise ValueError(f"its format is not '{ADAPTER_FORMAT}'")
    missing = [name for name in ("base", "user", "ranks", "sha256") if name not in texts]
    if missing:
        raise ValueError(f"its metadata lack {', '.join(missing)}")
    ranks = _ranks(texts["ranks"])
    matrices = {name: place for name, place in tensors.tensors.items() if name != LEARNED}
    kinds = {place.dtype for name, place in matrices.items() if not name.endswith(SCALE)}
    if len(kinds) != 1 or not kinds <= WEIGHTS.keys():
        raise ValueError(f"its matrices are not all of one of the types {', '.join(WEIGHTS)}")
    (kind,) = kinds
    learned = tensors.tensors.get(LEARNED)
    if learned is not None and (learned.dtype != "U8" or len(learned.shape) != 1):
        raise ValueError(f"tensor '{LEARNED}' does not hold bytes")
    expected = {f"{projection}.{half}" for projection in ranks for half in HALVES}
    if kind == "I8":
        expected |= {name + SCALE for name in expected}
    if matrices.keys() != expected:
        odd = min(matrices.keys() ^ expected)
        raise ValueError(f"tensor '{odd}' is missing or doesn't belong there")
    for projection, by_layer in ranks.items():
        for half in HALVES:
            _check_shape(tensors, f"{projection}.{half}", sum(by_layer))
    optional = {name: texts.get(name, "") for name in ("name", "base_name", "created_by")}
    return AdapterHeader(
        texts["base"], texts["user"], ranks=ranks, weights=WEIGHTS[kind], sha256=texts["sha256"], size=size, **optional
    )


def _check_shape(tensors: TensorHeader, name: str, rows: int) -> None:
    shape = tensors.tensors[name].shape
    if len(shape) != 2 or shape[0] != rows or shape[1] < 1:
        raise ValueError(f"tensor '{name}' is {shape}, its ranks add up to {rows}")
    scale = tensors.tensors.get(name + SCALE)
    if scale is not None and (scale.dtype != "F32" or scale.shape != (rows,)):
        raise ValueError(f"tensor '{name}{SCALE}' does not have a float32 number for each of {rows} rows")


def _ranks(text: str) -> dict[str, tuple[int, ...]]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its ranks are not JSON: {error}") from None
    if not isinstance(body, dict) or not body:
        raise ValueError("its ranks are not a JSON object with projections")
    for projection, ranks in body.items():
        if not _PROJECTION.match(projection):
            raise ValueError("its ranks have an odd name for a projection")
        if not isinstance(ranks, list) or len(ranks) > MAX_LAYERS or not all(_is_rank(rank) for rank in ranks):
            raise ValueError(f"the ranks of '{projection}' are not up to {MAX_LAYERS} whole numbers to {MAX_RANK}")
        if not any(ranks):
            raise ValueError(f"'{projection}' has no rank at any layer")
    return {projection: tuple(ranks) for projection, ranks in body.items()}


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_RANK


def _matrices(
    ranks: Mapping[str, tuple[int, ...]], tensors: TensorHeader, data: memoryview
) -> Iterator[tuple[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Views of each layer's rows, A turned so that its inputs come first."""
    for projection, by_layer in ranks.items():
        a, b = (_widened(tensors, f"{projection}.{half}", data) for half in HALVES)
        row = 0
        for layer, rank in enumerate(by_layer):
            if rank:
                yield (layer, projection), (a[row : row + rank].T, b[row : row + rank])
                row += rank


def _widened(tensors: TensorHeader, name: str, data: memoryview) -> NDArray[np.float32]:
    stored = _array(tensors, name, data)
    if name + SCALE not in tensors.tensors:
        values = stored.astype(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused below
            values = stored * _array(tensors, name + SCALE, data)[:, np.newaxis]
    if not np.isfinite(values).all():
        raise ValueError(f"tensor '{name}' holds numbers that are not finite")
    return values


def _array(tensors: TensorHeader, name: str, data: memoryview) -> NDArray[Any]:
    place = tensors.tensors[name]
    values = np.frombuffer(data, _DTYPES[place.dtype], math.prod(place.shape), place.start)
    return values.reshape(place.shape)
