"""Rows as bytes: ids in Elias-Fano form, values in 12, 16 or 32 bits, the tail's mass as one more value.

A row is: its number of tokens; the ids; the values; the tail. docs/wire.md has the layout bit by bit, with an example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cloud_bridge.strict import malformed, require
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, ValueType

_BITS: dict[ValueType, int] = {"float32": 32, "float16": 16, "bits12": 12}
_FLOAT16_LOWEST = -65504.0
_MOST_LOW_BITS = 15
_MOST_COUNT_BYTES = 5
_LAST_CODE = 4095  # for the tail: there is none
_CODES_A_ROOT = 1024.0
# How far probabilities and tail may be from 1. Half a step of a value v is 5e-4 |v| in float16 and 1e-3 sqrt(|v|) in 12
# bits, and most of the mass lies above e^-11: more is another format or a fault.
_MASS_TOLERANCE: dict[ValueType, float] = {"float32": 0.005, "float16": 0.02, "bits12": 0.02}


def encode_rows(rows: Iterable[SparseLogProbs], value_type: ValueType) -> bytes:
    """Bytes of rows, one after the other."""
    return b"".join(
        _encode_count(row.ids.size) + _encode_ids(row.ids) + _encode_values(row, value_type) for row in rows
    )


def decode_rows(data: bytes, *, count: int, vocab_size: int, form: RowFormat) -> tuple[SparseLogProbs, ...]:
    """Read exactly `count` rows, which must fill `data`.

    Args:
        data: the bytes.
        count: how many rows they must be.
        vocab_size: ids must be below it.
        form: how the rows were asked for.

    Returns:
        The rows.

    Raises:
        ProtocolError: the bytes are no such rows.
    """
    rows = []
    at = 0
    for _ in range(count):
        tokens, at = _decode_count(data, at)
        require(
            1 <= tokens <= min(form.top_k, vocab_size),
            f"a row has {tokens} tokens, 1 to {min(form.top_k, vocab_size)} are allowed",
        )
        ids, at = _decode_ids(data, at, tokens, vocab_size)
        end = at + -(-(tokens + 1) * _BITS[form.value_type] // 8)
        require(end <= len(data), "a row ends too early")
        rows.append(_row(ids, *_decode_values(data[at:end], tokens, form.value_type), form.value_type))
        at = end
    require(at == len(data), f"{len(data) - at} bytes follow the last of {count} rows")
    return tuple(rows)


def _row(
    ids: NDArray[np.int32], log_probs: NDArray[np.float32], tail_mass: float, value_type: ValueType
) -> SparseLogProbs:
    # NaN fails this too.
    require(
        bool((log_probs <= 1e-3).all()) and bool(np.isfinite(log_probs).all()),
        "a log-probability is above 0 or not finite",
    )
    require(0.0 <= tail_mass <= 1.001, "a tail mass is not in [0, 1]")
    mass = float(np.exp(log_probs, dtype=np.float64).sum()) + tail_mass
    require(abs(mass - 1.0) <= _MASS_TOLERANCE[value_type], f"the probabilities of a row sum to {mass:.3f}")
    return SparseLogProbs(ids, log_probs, min(tail_mass, 1.0))


# --- the number of tokens: a varint, as in protobuf ------------------------------------------------------------------


def _encode_count(count: int) -> bytes:
    written = bytearray()
    while count > 0x7F:
        written.append(count & 0x7F | 0x80)
        count >>= 7
    written.append(count)
    return bytes(written)


def _decode_count(data: bytes, at: int) -> tuple[int, int]:
    count = 0
    for index in range(_MOST_COUNT_BYTES):
        require(at + index < len(data), "rows are missing")
        byte = data[at + index]
        count |= (byte & 0x7F) << (7 * index)
        if byte <= 0x7F:
            return count, at + index + 1
    raise malformed("the number of tokens of a row is out of range")


# --- ids: Elias-Fano (Elias 1974, Fano 1971), within two bits a token of the fewest possible --------------------------


def _encode_ids(ids: NDArray[np.int32]) -> bytes:
    count, last = ids.size, int(ids[-1])
    low_bits = min(range(_MOST_LOW_BITS + 1), key=lambda bits: bits * count + (last >> bits))
    header = _bits(np.array([low_bits]), 4)
    low = _bits(ids & ((1 << low_bits) - 1), low_bits)
    ones = (ids >> low_bits) + np.arange(count)
    high = np.zeros(int(ones[-1]) + 1, np.uint8)
    high[ones] = 1
    return np.packbits(np.concatenate([header, low, high])).tobytes()


def _decode_ids(data: bytes, at: int, count: int, vocab_size: int) -> tuple[NDArray[np.int32], int]:
    require(at < len(data), "a row ends too early")
    low_bits = data[at] >> 4
    split = 4 + count * low_bits
    # A valid row has at most so many bits: nothing larger is unpacked, whatever comes.
    longest = split + count + ((vocab_size - 1) >> low_bits)
    bits = np.unpackbits(np.frombuffer(data, np.uint8, min(-(-longest // 8), len(data) - at), at))
    ones = np.flatnonzero(bits[split:])[:count]
    require(ones.size == count, f"a row ends too early, or has an id outside the vocabulary of {vocab_size}")
    ids = (ones - np.arange(count)) << low_bits
    if low_bits:
        ids += bits[4:split].reshape(count, low_bits) @ (1 << np.arange(low_bits - 1, -1, -1))
    require(bool((ids[1:] > ids[:-1]).all()), "ids of a row do not ascend")
    require(int(ids[-1]) < vocab_size, f"a row has the id {int(ids[-1])} in a vocabulary of {vocab_size}")
    used = split + int(ones[-1]) + 1
    padded = -(-used // 8) * 8
    require(not bits[used:padded].any(), "the bits after a row's ids are not zero")
    return ids.astype(np.int32), at + padded // 8


def _bits(numbers: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """Each number as `width` bits, the highest first."""
    return (numbers[:, None] >> np.arange(width - 1, -1, -1) & 1).astype(np.uint8).ravel()


# --- values: natural log-probabilities, the last one that of the tail's mass -----------------------------------------


def _encode_values(row: SparseLogProbs, value_type: ValueType) -> bytes:
    tail = math.log(row.tail_mass) if row.tail_mass > 0.0 else -math.inf
    if value_type == "bits12":
        # The square root gives likely tokens fine steps, where a choice hangs on them, and reaches down to e^-16.
        roots = np.sqrt(np.maximum(-np.append(row.log_probs.astype(np.float64), tail), 0.0))
        codes = np.minimum(np.floor(roots * _CODES_A_ROOT + 0.5), _LAST_CODE)
        if tail > -math.inf:
            codes[-1] = min(codes[-1], _LAST_CODE - 1)
        return np.packbits(_bits(codes.astype(np.int64), 12)).tobytes()
    values = np.append(row.log_probs, np.float32(tail))
    if value_type == "float16":
        values[:-1] = np.maximum(values[:-1], np.float32(_FLOAT16_LOWEST))
        return values.astype("<f2").tobytes()
    return values.astype("<f4").tobytes()


def _decode_values(data: bytes, count: int, value_type: ValueType) -> tuple[NDArray[np.float32], float]:
    """The log-probabilities and the tail's mass."""
    if value_type == "bits12":
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        split = (count + 1) * 12
        require(not bits[split:].any(), "the bits after a row's values are not zero")
        codes = bits[:split].reshape(-1, 12) @ (1 << np.arange(11, -1, -1))
        values = -((codes / _CODES_A_ROOT) ** 2).astype(np.float32)
        return values[:-1], 0.0 if codes[-1] == _LAST_CODE else math.exp(values[-1])
    values = np.frombuffer(data, "<f4" if value_type == "float32" else "<f2").astype(np.float32)
    # Above 0 and NaN are refused later: exp of them must only not fail.
    return values[:-1], math.exp(min(float(values[-1]), 1.0))
