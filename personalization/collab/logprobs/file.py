"""The log-prob file: what edge and cloud said at every token of reference answers, cut so that fusion stays exact.

A safetensors file of columns, which is mapped and not read. Of each row (a position of an answer) it keeps the tokens
that fusion can treat singly: those that the cloud sent, the edge's likeliest, those that the tail's cap can touch
(`edge_runtime.fusion.fuse.tail_of`), and the reference token. All others have the edge's own shape in every strategy,
so their mass is all that has to be known of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.tensor_file import TensorHeader, read_header
from edge_runtime.errors import RequestError
from edge_runtime.fusion.edge_features import PROBES
from edge_runtime.fusion.sparse import RowFormat
from personalization.errors import DataError

FORMAT = "cogenesis-logprobs/2"
STEERING = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Weights of delta steering whose rows can be computed exactly from a file."""

_RECORDS = "records"
_DTYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}
_SIZES = {"F32": 4, "I32": 4, "U8": 1}
_ALWAYS: Mapping[str, str] = {
    "target": "I32",
    "cloud_count": "I32",
    "token_count": "I32",
    "ids": "I32",
    "edge": "F32",
    "cloud": "F32",
    "edge_rest": "F32",
    "shift": "F32",
    "ceiling": "F32",
    "tail_mass": "F32",
    "cloud_target": "F32",
    "probes": "F32",
}
_WITHOUT: Mapping[str, str] = {"without": "F32", "without_rest": "F32", "without_shift": "F32", "steering_rest": "F32"}


@dataclass(frozen=True, slots=True)
class LogProbsOf:
    """Whose log-probs a file holds.

    Attributes:
        edge: digest of the edge's weights, as it is stored.
        edge_base: identity of the model that it is, however it is stored (`Bundle.base`): combiners are bound to it.
        cloud: digest of the cloud's weights, or a bridge's name of its model.
        vocab_size: of both.
        rows: how the cloud's rows are cut and coded.
        edge_top: how many of the edge's likeliest tokens every row has.
        without_context: whether the edge's rows without the context are there, too.
    """

    edge: str
    edge_base: str
    cloud: str
    vocab_size: int
    rows: RowFormat
    edge_top: int
    without_context: bool


@dataclass(frozen=True, slots=True)
class RecordRows:
    """A record's rows: `rows` of them, in the order of its answer's tokens."""

    id: str
    user: str
    rows: int


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Rows of many records, columns over all of them; n rows, m kept tokens, k tokens that the cloud sent.

    Attributes:
        about: whose they are.
        records: in the order of the rows.
        target: (n,) int32, the reference's token.
        cloud_count: (n,) int32, tokens that the cloud sent.
        token_count: (n,) int32, kept tokens.
        ids: (m,) int32, kept tokens row by row: the cloud's, ascending, then the others, likeliest for the edge first.
        edge: (m,) float32, the edge's log-probs of them with context.
        cloud: (k,) float32, the cloud's log-probs of its own, row by row.
        edge_rest: (n,) float32, log of the edge's mass on all tokens that are not kept.
        shift, ceiling: (n,) float32, see `edge_runtime.fusion.fuse.Tail`.
        tail_mass: (n,) float32, the cloud's mass on tokens it did not send.
        cloud_target: (n,) float32, the cloud's own log-prob of the reference's token; NaN where it did not say.
        probes: (n, PROBES) float32, the edge's log-probs of `edge_runtime.fusion.edge_features.probe_ids`.
        without: (m,) float32, the edge's log-probs without context; None where nobody asked, as are those that follow.
        without_rest: (n,) float32, log of its mass on the tokens that are not kept.
        without_shift: (n,) float32, of the tail that takes its shape.
        steering_rest: (n, len(STEERING)) float32, over the tokens that are not kept, log of the sum of
            exp((1 - w) without + w edge), for each weight w.
    """

    about: LogProbsOf
    records: tuple[RecordRows, ...]
    target: NDArray[np.int32]
    cloud_count: NDArray[np.int32]
    token_count: NDArray[np.int32]
    ids: NDArray[np.int32]
    edge: NDArray[np.float32]
    cloud: NDArray[np.float32]
    edge_rest: NDArray[np.float32]
    shift: NDArray[np.float32]
    ceiling: NDArray[np.float32]
    tail_mass: NDArray[np.float32]
    cloud_target: NDArray[np.float32]
    probes: NDArray[np.float32]
    without: NDArray[np.float32] | None = None
    without_rest: NDArray[np.float32] | None = None
    without_shift: NDArray[np.float32] | None = None
    steering_rest: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        """Rows."""
        return int(self.target.shape[0])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(n,) int64: where each row's kept tokens begin."""
        return _starts(self.token_count)

    @cached_property
    def row_of(self) -> NDArray[np.int64]:
        """(m,) int64: the row of each kept token."""
        return np.repeat(np.arange(self.size), self.token_count)

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """(m,) int64: the place of each kept token in its row."""
        return np.arange(self.ids.shape[0]) - np.repeat(self.starts, self.token_count)

    @cached_property
    def is_sent(self) -> NDArray[np.bool_]:
        """(m,) bool: whether the cloud sent a kept token."""
        return self.place < np.repeat(self.cloud_count, self.token_count)

    @cached_property
    def target_at(self) -> NDArray[np.int64]:
        """(n,) int64: where the reference's token is among the kept ones."""
        return np.flatnonzero(self.ids == np.repeat(self.target, self.token_count))

    @cached_property
    def completed(self) -> NDArray[np.float32]:
        """(m,) float32: the cloud's log-probs, completed with the edge's as `complete_tail` does."""
        return self._complete(self.edge, self.shift)

    @cached_property
    def completed_without(self) -> NDArray[np.float32]:
        """(m,) float32: the same, completed with the edge's log-probs without context.

        Raises:
            DataError: the file has none.
        """
        if self.without is None or self.without_shift is None:
            raise DataError("The log-probs are without those of the edge without context. Make them with --without.")
        return self._complete(self.without, self.without_shift)

    @cached_property
    def step(self) -> NDArray[np.int64]:
        """(n,) int64: which token of its answer a row predicts."""
        counts = np.array([record.rows for record in self.records], np.int64)
        return np.arange(self.size) - np.repeat(_starts(counts), counts)

    @cached_property
    def record_of(self) -> NDArray[np.int64]:
        """(n,) int64: the record of each row."""
        return np.repeat(np.arange(len(self.records)), [record.rows for record in self.records])

    @property
    def edge_nll(self) -> NDArray[np.float64]:
        """(n,) float64, nats: the edge alone, with context."""
        return -self.edge[self.target_at].astype(np.float64)

    @property
    def cloud_nll(self) -> NDArray[np.float64]:
        """(n,) float64, nats: the cloud alone, from its whole row; NaN where it did not say."""
        return -self.cloud_target.astype(np.float64)

    @property
    def without_nll(self) -> NDArray[np.float64] | None:
        """(n,) float64, nats: the edge without context; None where nobody asked."""
        return None if self.without is None else -self.without[self.target_at].astype(np.float64)

    def of_users(self, users: Sequence[str]) -> LogProbs:
        """The rows of some users' records."""
        chosen = set(users)
        keep = np.array([record.user in chosen for record in self.records], bool)
        rows = keep[self.record_of]
        tokens, sent = np.repeat(rows, self.token_count), np.repeat(rows, self.cloud_count)
        masks = dict.fromkeys(("ids", "edge", "without"), tokens) | {"cloud": sent}
        columns = {name: column[masks.get(name, rows)] for name, column in self.columns().items()}
        return LogProbs(self.about, tuple(one for one in self.records if one.user in chosen), **columns)

    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns by name, without those that are not there."""
        every = {name: getattr(self, name) for name in (*_ALWAYS, *_WITHOUT)}
        return {name: column for name, column in every.items() if column is not None}

    def _complete(self, shape: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = np.minimum(
            shape + np.repeat(shift, self.token_count), np.repeat(self.ceiling, self.token_count), dtype=np.float32
        )
        whole[self.is_sent] = self.cloud
        return whole


def _starts(counts: NDArray[Any]) -> NDArray[np.int64]:
    ends = np.cumsum(counts, dtype=np.int64)
    return np.concatenate([[0], ends[:-1]]).astype(np.int64) if ends.size else ends


def joined(parts: Sequence[LogProbs]) -> LogProbs:
    """Rows of several files as one; `parts` is not empty, and all are of the same models and kind."""
    names = parts[0].columns()
    columns = {name: np.concatenate([part.columns()[name] for part in parts]) for name in names}
    return LogProbs(parts[0].about, tuple(record for part in parts for record in part.records), **columns)


def encode_logprobs(rows: LogProbs) -> bytes:
    """A file's content; the same rows give the same bytes."""
    records = json.dumps([[one.id, one.user, one.rows] for one in rows.records], ensure_ascii=False).encode()
    columns = {_RECORDS: np.frombuffer(records, np.uint8)} | rows.columns()
    about = json.dumps(asdict(rows.about), sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "about": about}}
    reached = 0
    # Widest items first, so that every column of a mapped file is aligned.
    names = [name for name in columns if name != _RECORDS] + [_RECORDS]
    for name in names:
        column, dtype = columns[name], _dtype(name)
        size = column.size * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(column.shape), "data_offsets": [reached, reached + size]}
        reached += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = [columns[name].astype(_DTYPES[_dtype(name)], copy=False).tobytes() for name in names]
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def read_logprobs(path: Path) -> LogProbs:
    """Map a file's columns; what they say of each other is checked.

    Raises:
        DataError: there is no such file, or it is damaged, or from another version.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size, _SIZES)
        content = np.memmap(path, np.uint8, mode="r")
        return _checked(header, content)
    except FileNotFoundError:
        raise DataError(f"There is no file of log-probs: {path}. Make one with `cogenesis collab logprobs`.") from None
    except OSError as error:
        raise DataError(f"The log-probs can't be read: {path} ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError, RequestError, RecursionError) as error:
        raise DataError(
            f"The log-probs can't be used: {path} ({error}). Make them again with `cogenesis collab logprobs`."
        ) from None


def decode_logprobs(content: bytes) -> LogProbs:
    """Rows from a file's content.

    Raises:
        ValueError: it is damaged.
    """
    return _checked(read_header(BytesIO(content), len(content), _SIZES), np.frombuffer(content, np.uint8))


def _dtype(name: str) -> str:
    return "U8" if name == _RECORDS else {**_ALWAYS, **_WITHOUT}[name]


def _checked(header: TensorHeader, content: NDArray[np.uint8]) -> LogProbs:
    if header.metadata.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    body = json.loads(header.metadata["about"])
    about = LogProbsOf(**(body | {"rows": RowFormat(**body["rows"])}))
    wanted = {_RECORDS: "U8", **_ALWAYS, **(_WITHOUT if about.without_context else {})}
    if {name: place.dtype for name, place in header.tensors.items()} != wanted:
        raise ValueError("its columns are not those that it should have")
    columns: dict[str, NDArray[Any]] = {}
    for name, place in header.tensors.items():
        data = content[header.size + place.start : header.size + place.end]
        columns[name] = data.view(_DTYPES[place.dtype]).reshape(place.shape)
    listed = json.loads(columns.pop(_RECORDS).tobytes())
    records = tuple(RecordRows(str(name), str(user), int(rows)) for name, user, rows in listed)
    rows = LogProbs(about, records, **columns)
    _check_columns(rows)
    return rows


def _check_columns(rows: LogProbs) -> None:
    """Hold every column to the others.

    Raises:
        ValueError: they contradict each other; the text says which.
    """
    size, tokens, sent = rows.size, rows.ids.shape[0], rows.cloud.shape[0]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(rows.columns(), (size,))
    shapes |= dict.fromkeys(("ids", "edge", "without"), (tokens,))
    shapes |= {"cloud": (sent,), "probes": (size, PROBES), "steering_rest": (size, len(STEERING))}
    for name, column in rows.columns().items():
        if column.shape != shapes[name]:
            raise ValueError(f"column '{name}' has the shape {column.shape}, not {shapes[name]}")
        if column.dtype.kind == "f" and name != "cloud_target" and not np.isfinite(column).all():
            raise ValueError(f"column '{name}' is not finite")
    if any(one.rows < 0 for one in rows.records) or sum(one.rows for one in rows.records) != size:
        raise ValueError("its records don't have as many rows as its columns")
    if size == 0:
        raise ValueError("it has no rows")
    counts = rows.token_count, rows.cloud_count
    if int(rows.cloud_count.min()) < 1 or bool((rows.cloud_count > rows.token_count).any()):
        raise ValueError("a row has fewer tokens than the cloud sent, or none of the cloud's")
    if tuple(int(count.sum(dtype=np.int64)) for count in counts) != (tokens, sent):
        raise ValueError("its rows don't have as many tokens as its columns")
    if tokens and not 0 <= int(rows.ids.min()) <= int(rows.ids.max()) < rows.about.vocab_size:
        raise ValueError("a token is outside the vocabulary")
    if not np.array_equal(rows.row_of[rows.target_at], np.arange(size)):
        raise ValueError("a row lacks its reference token, or has it twice")
