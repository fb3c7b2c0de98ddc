"""Every kind of GGUF block is the same number as in the gguf package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from export.model.gguf.blocks import EXACT, exact_blocks
from export.model.quantized_matrix import centered_zeros, stack_rows
from tests.support.gguf_blocks import ANY, FROM_WEIGHTS, blocks_of, random_blocks


def test_the_kinds_that_people_have_are_carried_over():
    assert set(EXACT) == set(ANY)


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_blocks_are_the_numbers_that_the_gguf_package_reads(kind):
    rng = np.random.default_rng(int(kind))
    weights = rng.normal(0, 0.05, (24, 512)).astype(np.float32) + rng.normal(0, 0.02, (24, 1)).astype(np.float32)
    weights[3, :64] = 0  # blocks of zeros have a scale of zero
    weights[4, :32] = 0.25  # constant blocks too, except for their offset
    packed = blocks_of(weights, kind)
    blocks = exact_blocks(packed, kind)
    assert blocks.codes.max() < 2**blocks.bits
    np.testing.assert_array_equal(blocks.dequantize(), gguf.quants.dequantize(packed, kind))
    np.testing.assert_array_equal(blocks.rows(5, 9).dequantize(), blocks.dequantize()[5:9])


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_blocks_of_any_bytes_are_carried_over(kind):
    # Factors of any size and sign, and steps of zero, which no quantizer writes.
    size, length = gguf.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(int(kind)).integers(0, 256, (200, length), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(packed, kind)
    whole = np.isfinite(expected).all(axis=1)
    assert whole.sum() > 100
    np.testing.assert_array_equal(exact_blocks(packed[whole], kind).dequantize(), expected[whole])
    assert expected.shape[1] == size


@pytest.mark.parametrize(
    "kinds",
    [(Kind.Q4_K, Kind.Q4_1), (Kind.Q5_0, Kind.Q8_0), (Kind.Q5_K, Kind.Q5_0), (Kind.IQ4_NL, Kind.IQ4_XS, Kind.Q5_1)],
)
def test_rows_of_different_kinds_stand_side_by_side(kinds):
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.05, (8, 512)).astype(np.float32)
    packed = [blocks_of(weights, kind) if kind in FROM_WEIGHTS else random_blocks(kind, 8, 512, rng) for kind in kinds]
    expected = [gguf.quants.dequantize(data, kind) for data, kind in zip(packed, kinds, strict=True)]
    stacked = stack_rows([exact_blocks(data, kind) for data, kind in zip(packed, kinds, strict=True)])
    np.testing.assert_array_equal(stacked.dequantize(), np.concatenate(expected))


@given(st.floats(0, 60000, width=16), st.integers(0, 63), st.floats(0, 60000, width=16), st.integers(0, 63))
@settings(max_examples=300, deadline=None)
def test_the_rest_beside_a_zero_point_is_exact(d, step, least, low):
    scale, minimum = np.float32(d) * np.float32(step), np.float32(least) * np.float32(low)
    for bits in (4, 8):
        zero = centered_zeros(np.array([[scale]]), np.array([[minimum]]), bits)[0, 0]
        rest = scale * np.float32(zero) - minimum
        assert float(rest) + float(minimum) == float(scale) * int(zero)
