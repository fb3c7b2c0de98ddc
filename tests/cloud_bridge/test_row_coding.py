"""Rows as bytes: read back as docs/wire.md says, within the errors it names, and nothing malformed gets in."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloud_bridge.row_coding import decode_rows, encode_rows
from edge_runtime.errors import ProtocolError
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, ValueType
from tests.support.random_rows import VALUE_TYPES, random_rows

VOCABULARY = 300
BITS = {"float32": 32, "float16": 16, "bits12": 12}


def form(value_type: ValueType, top_k: int = VOCABULARY) -> RowFormat:
    return RowFormat(top_k, 1.0, value_type)


def sparse(ids: list[int], probabilities: list[float], tail_mass: float) -> SparseLogProbs:
    return SparseLogProbs(np.array(ids, np.int32), np.log(np.array(probabilities, np.float32)), tail_mass)


def read_by_the_document(data: bytes, value_type: str) -> list[tuple[list[int], list[float], float]]:
    """Rows as a reader in any language would: one bit, then one value at a time."""
    found, at = [], 0
    while at < len(data):
        count = shift = 0
        while True:
            byte, at = data[at], at + 1
            count |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        position = at * 8

        def bit() -> int:
            nonlocal position
            position += 1
            return data[(position - 1) // 8] >> (7 - (position - 1) % 8) & 1

        def number(width: int) -> int:
            value = 0
            for _ in range(width):
                value = value << 1 | bit()
            return value

        low_bits = number(4)
        low = [number(low_bits) for _ in range(count)]
        ids, high = [], 0
        for part in low:
            while bit() == 0:
                high += 1
            ids.append(high << low_bits | part)
        position = -(-position // 8) * 8
        if value_type == "bits12":
            codes = [number(12) for _ in range(count + 1)]
            logs = [-((code / 1024) ** 2) for code in codes]
            tail = 0.0 if codes[-1] == 4095 else math.exp(logs[-1])
        else:
            size = BITS[value_type] // 8
            start = position // 8
            position += (count + 1) * BITS[value_type]
            values = [data[start + size * index : start + size * (index + 1)] for index in range(count + 1)]
            logs = [struct.unpack("<f" if size == 4 else "<e", value)[0] for value in values]
            tail = math.exp(logs[-1])
        at = -(-position // 8)
        found.append((ids, logs[:-1], tail))
    return found


@given(st.lists(random_rows(), max_size=4), VALUE_TYPES)
def test_a_reader_written_from_the_document_reads_the_same(rows: list[SparseLogProbs], value_type: ValueType) -> None:
    data = encode_rows(rows, value_type)
    ours = decode_rows(data, count=len(rows), vocab_size=VOCABULARY, form=form(value_type))
    theirs = read_by_the_document(data, value_type)
    assert len(ours) == len(theirs)
    for row, (ids, logs, tail_mass), sent in zip(ours, theirs, rows, strict=True):
        assert row.ids.tolist() == ids == sent.ids.tolist()
        np.testing.assert_allclose(row.log_probs, logs, rtol=1e-6)
        assert row.tail_mass == pytest.approx(tail_mass, rel=1e-6)


@given(random_rows(vocab_size=3000))
@example(sparse([0], [1.0], 0.0))
@example(sparse([2999], [0.5], 0.5))
def test_float32_is_exact_and_float16_is_rounded_once(row: SparseLogProbs) -> None:
    (exact,) = decode_rows(encode_rows([row], "float32"), count=1, vocab_size=3000, form=form("float32", 3000))
    np.testing.assert_array_equal(exact.log_probs, row.log_probs)
    assert exact.tail_mass == pytest.approx(row.tail_mass, rel=2e-6)
    (half,) = decode_rows(encode_rows([row], "float16"), count=1, vocab_size=3000, form=form("float16", 3000))
    np.testing.assert_array_equal(half.log_probs, row.log_probs.astype(np.float16).astype(np.float32))
    assert half.tail_mass == pytest.approx(row.tail_mass, rel=0.01)


@settings(deadline=None)
@given(random_rows(vocab_size=3000))
def test_twelve_bits_are_off_by_half_a_step_at_most_and_never_turn_two_tokens_round(row: SparseLogProbs) -> None:
    data = encode_rows([row], "bits12")
    (got,) = decode_rows(data, count=1, vocab_size=3000, form=form("bits12", 3000))
    sent = np.append(row.log_probs, np.log(row.tail_mass) if row.tail_mass else -np.inf)
    came = np.append(got.log_probs, np.log(got.tail_mass) if got.tail_mass else -np.inf)
    assert (row.tail_mass == 0.0) == (got.tail_mass == 0.0)
    coded = sent >= -15.98
    assert (np.abs(came[coded] - sent[coded]) <= np.sqrt(np.maximum(-sent[coded], 0.0)) / 1024 + 1e-6).all()
    assert (came[~coded] <= -15.97).all()
    order = np.argsort(-row.log_probs, kind="stable")
    assert (np.diff(got.log_probs[order]) <= 0).all()


def test_values_below_what_a_type_holds_are_raised_to_its_lowest() -> None:
    row = SparseLogProbs(np.array([1, 2], np.int32), np.array([0.0, -1e6], np.float32), 0.0)
    (half,) = decode_rows(encode_rows([row], "float16"), count=1, vocab_size=3, form=form("float16"))
    assert half.log_probs.tolist() == [0.0, -65504.0]
    (twelve,) = decode_rows(encode_rows([row], "bits12"), count=1, vocab_size=3, form=form("bits12"))
    assert twelve.log_probs.tolist() == pytest.approx([0.0, -((4095 / 1024) ** 2)])


def test_the_example_of_the_document() -> None:
    row = sparse([11, 284, 28725], [0.5, 0.25, 0.125], 0.125)
    data = encode_rows([row], "bits12")
    assert data.hex(" ") == "03 d0 05 84 72 06 b8 80 35 54 b6 5c 55 c5"
    assert read_by_the_document(data, "bits12")[0][0] == [11, 284, 28725]


@settings(max_examples=40, deadline=None)
@given(random_rows(vocab_size=49_152), VALUE_TYPES)
def test_ids_cost_two_bits_a_token_more_than_the_fewest_and_a_row_its_tail_and_three_bytes(
    row: SparseLogProbs, value_type: ValueType
) -> None:
    count = row.ids.size
    spent = len(encode_rows([row], value_type)) - count * BITS[value_type] / 8
    # There are at least (vocabulary / count) ** count sets of so many ids.
    ids = count * (math.log2(49_152 / count) + 2) / 8
    tail = BITS[value_type] / 8
    padding = 0.5 if value_type == "bits12" else 0
    assert spent <= ids + 2.375 + tail + padding + (count > 127) + (count > 16_383)


# --- what is refused --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=120), st.integers(0, 3), VALUE_TYPES)
def test_random_bytes_raise_a_protocol_error_or_decode(data: bytes, count: int, value_type: ValueType) -> None:
    decodes_or_refuses(data, count, value_type)


@given(st.lists(random_rows(), min_size=1, max_size=3), VALUE_TYPES, st.data())
def test_damaged_rows_raise_a_protocol_error_or_decode(
    rows: list[SparseLogProbs], value_type: ValueType, data: st.DataObject
) -> None:
    damaged = bytearray(encode_rows(rows, value_type))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]), len(rows), value_type)


def decodes_or_refuses(data: bytes, count: int, value_type: ValueType) -> None:
    try:
        rows = decode_rows(data, count=count, vocab_size=VOCABULARY, form=form(value_type))
    except ProtocolError as error:
        assert "\n" not in str(error)
    else:
        assert len(rows) == count
        assert all(row.ids[-1] < VOCABULARY for row in rows)


@given(st.lists(random_rows(), min_size=1, max_size=3), VALUE_TYPES, st.data())
def test_cut_rows_are_always_refused(rows: list[SparseLogProbs], value_type: ValueType, data: st.DataObject) -> None:
    whole = encode_rows(rows, value_type)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ProtocolError):
        decode_rows(cut, count=len(rows), vocab_size=VOCABULARY, form=form(value_type))


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


# Two tokens, no low bits, ids 5 and 6 in unary: 0000 0000 0101 and four bits of padding.
COUNT, IDS = b"\x02", b"\x00\x50"
VALUES = floats(math.log(0.5), math.log(0.25), math.log(0.25))


def test_a_row_made_by_hand_is_read() -> None:
    (row,) = decode_rows(COUNT + IDS + VALUES, count=1, vocab_size=10, form=form("float32"))
    assert row.ids.tolist() == [5, 6]
    assert row.tail_mass == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("data", "limits", "cause"),
    [
        (b"", {}, "rows are missing"),
        (b"\x80", {}, "rows are missing"),
        (b"\x80\x80\x80\x80\x80\x00", {}, "number of tokens"),
        (b"\x00", {}, "0 tokens, 1 to 4"),
        (b"\xff\xff\xff\xff\x7f", {}, "tokens, 1 to 4"),
        (COUNT + IDS + VALUES, {"top_k": 1}, "2 tokens, 1 to 1"),
        (b"\x04" + IDS + VALUES, {"vocab_size": 3}, "4 tokens, 1 to 3"),
        (COUNT, {}, "too early"),
        (COUNT + IDS[:1], {}, "too early"),
        (COUNT + IDS, {}, "too early"),
        (COUNT + IDS + VALUES[:-1], {}, "too early"),
        (COUNT + IDS + VALUES + b"\x00", {}, "1 bytes follow"),
        (COUNT + b"\x00\x51" + VALUES, {}, "not zero"),
        (COUNT + IDS + VALUES, {"vocab_size": 6}, "vocabulary of 6"),
        (COUNT + b"\x00\x00\x00\x00" + VALUES, {}, "vocabulary of 10"),
        # One low bit each (0001), low bits 1 1 or 1 0, high parts 0 and 0 (1 1): the ids 1, 1 or 1, 0.
        (COUNT + b"\x1f" + VALUES, {}, "ascend"),
        (COUNT + b"\x1b" + VALUES, {}, "ascend"),
        (COUNT + IDS + floats(math.nan, -1.0, -1.0), {}, "not finite"),
        (COUNT + IDS + floats(-math.inf, -1.0, -1.0), {}, "not finite"),
        (COUNT + IDS + floats(0.5, -1.0, -1.0), {}, "above 0"),
        (COUNT + IDS + floats(-1.0, -1.0, math.nan), {}, "tail mass"),
        (COUNT + IDS + floats(-1.0, -1.0, 0.5), {}, "tail mass"),
        (COUNT + IDS + floats(-1.0, -1.0, math.inf), {}, "tail mass"),
        (COUNT + IDS + floats(math.log(0.5), math.log(0.25), math.log(0.9)), {}, "sum to 1.650"),
    ],
)
def test_a_malformed_row_is_refused_with_its_cause(data: bytes, limits: dict[str, int], cause: str) -> None:
    given_ = {"vocab_size": 10, "top_k": 4} | limits
    with pytest.raises(ProtocolError, match=cause):
        decode_rows(data, count=1, vocab_size=given_["vocab_size"], form=form("float32", given_["top_k"]))


def test_bits_after_the_values_must_be_zero() -> None:
    data = encode_rows([sparse([5, 6], [0.5, 0.25], 0.25)], "bits12")
    assert decode_rows(data, count=1, vocab_size=10, form=form("bits12"))
    with pytest.raises(ProtocolError, match="values are not zero"):
        decode_rows(data[:-1] + bytes([data[-1] | 1]), count=1, vocab_size=10, form=form("bits12"))
