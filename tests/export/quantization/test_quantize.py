"""Block quantization: bounds on the error, exactness on grids, and how residuals are stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export.model.quantized_matrix import QuantizedMatrix, midpoint
from export.quantization.quantize import quantize, residual_columns, residual_mix, round_scales, stored_residual

GRIDS = ("symmetric", "asymmetric", "affine")
weights = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 96])), elements=st.floats(-100, 100, width=32)
)


@given(weights, st.sampled_from([4, 8]), st.sampled_from(GRIDS))
@settings(max_examples=100, deadline=None)
def test_every_code_and_zero_point_fits_its_bits_and_every_scale_is_a_float16(w, bits, grid):
    q = quantize(w, bits, grid)
    assert q.shape == w.shape
    assert q.codes.max() < 2**bits
    assert (q.zeros is None) == (grid == "symmetric")
    assert (q.residual is None) == (grid != "affine")
    if q.zeros is not None:
        assert q.zeros.max() < 2**bits
    np.testing.assert_array_equal(q.scales.astype(np.float16).astype(np.float32), q.scales)
    assert (q.scales != 0).all()


@given(weights, st.sampled_from(GRIDS))
@settings(max_examples=100, deadline=None)
def test_eight_bits_miss_no_weight_by_more_than_the_whole_range_over_250(w, grid):
    # One step is at most the range of the block (and zero) over 254; half of it is the most that rounding takes away.
    q = quantize(w, 8, grid)
    blocks = w.reshape(len(w), -1, 32)
    reach = 2 * np.abs(blocks).max(axis=2, keepdims=True)
    errors = np.abs(q.dequantize().reshape(blocks.shape) - blocks)
    assert (errors <= reach / 250 + 1e-5).all()


@given(weights, st.sampled_from([4, 8]), st.sampled_from(GRIDS))
@settings(max_examples=100, deadline=None)
def test_weights_inside_a_block_s_range_are_at_most_half_a_step_away(w, bits, grid):
    q = quantize(w, bits, grid)
    step = np.repeat(np.abs(q.scales), 32, axis=1)
    lowest, highest = (
        QuantizedMatrix(bits, 32, np.full_like(q.codes, end), q.scales, q.zeros, q.residual).dequantize()
        for end in (0, 2**bits - 1)
    )
    inside = (w >= np.minimum(lowest, highest)) & (w <= np.maximum(lowest, highest))
    error = np.abs(q.dequantize() - w)
    assert (error[inside] <= step[inside] * 0.5 + 1e-5 * (1 + np.abs(w[inside]))).all()


@given(weights, st.sampled_from([4, 8]))
@settings(max_examples=50, deadline=None)
def test_the_search_is_never_worse_than_the_plain_range_of_the_block(w, bits):
    blocks = w.reshape(-1, 32)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    step = round_scales((high - low) / np.float32(2**bits - 1))
    plain = low + step * np.clip(np.rint((blocks - low) / step), 0, 2**bits - 1)
    error = ((quantize(w, bits, "affine").dequantize() - w) ** 2).sum()
    assert error <= ((plain - blocks) ** 2).sum() * 1.01 + 1e-3


def test_weights_that_came_from_a_4_bit_file_come_back_exactly():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (64, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15  # GGUF's Q4_1 spans each block from its least to its largest weight
    scales = round_scales(rng.uniform(0.001, 0.1, (64, 4, 1)).astype(np.float32))
    minima = round_scales(-rng.uniform(0.01, 1, (64, 4, 1)).astype(np.float32))
    w = (scales * codes + minima).astype(np.float32).reshape(64, 128)
    np.testing.assert_allclose(quantize(w, 4, "affine").dequantize(), w, atol=1e-6)


def test_a_block_of_equal_weights_is_kept():
    for grid in ("symmetric", "affine"):
        w = np.full((2, 64), 0.375, np.float32)
        np.testing.assert_allclose(quantize(w, 4, grid).dequantize(), w, atol=1e-3)
    zeros = np.zeros((2, 64), np.float32)
    assert not quantize(zeros, 4, "affine").dequantize().any()


def test_columns_that_matter_more_get_the_smaller_error():
    rng = np.random.default_rng(1)
    w = rng.standard_normal((256, 64)).astype(np.float32)
    importance = np.ones(64, np.float32)
    importance[::2] = 100
    plain, weighted = quantize(w, 4), quantize(w, 4, importance=importance)
    errors = [((q.dequantize() - w) ** 2 * importance).sum() for q in (plain, weighted)]
    assert errors[1] < 0.97 * errors[0]


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 130)), elements=st.floats(-1, 1, width=32)))
@settings(max_examples=60, deadline=None)
def test_a_stored_residual_is_what_its_columns_give_with_mixed_block_sums(residual):
    columns, mix = residual_columns(residual), residual_mix(residual.shape[1])
    assert columns.bits == 4
    assert columns.codes.shape[1] % 32 == 0
    assert mix.shape == (residual.shape[1], columns.codes.shape[1])
    stored = stored_residual(residual)
    sums = np.random.default_rng(0).standard_normal((5, residual.shape[1])).astype(np.float32)
    np.testing.assert_allclose((sums @ mix) @ columns.dequantize().T, sums @ stored.T, atol=1e-4)
    # Four bits alone: half of a fourteenth of the range.
    assert np.abs(stored - residual).max() <= np.abs(residual).max() / 14 * 1.01 + 1e-6


def test_most_residuals_are_stored_far_more_finely_than_in_4_bits():
    rng = np.random.default_rng(2)
    for blocks in (18, 48, 64):
        residual = rng.uniform(-1, 1, (200, blocks)).astype(np.float32)
        errors = np.abs(stored_residual(residual) - residual).max(axis=0)
        assert (errors < 1 / 14 / 5).mean() >= 0.5


def test_the_midpoint_is_the_zero_point_of_symmetric_blocks():
    q = QuantizedMatrix(4, 32, np.full((1, 32), midpoint(4), np.uint8), np.ones((1, 1), np.float32))
    assert not q.dequantize().any()


@pytest.mark.parametrize(
    ("w", "bits", "says"),
    [
        (np.zeros((2, 33), np.float32), 4, "blocks of 32"),
        (np.zeros((2, 32), np.float32), 5, "4 or 8 bits"),
        (np.full((2, 32), np.nan, np.float32), 4, "finite"),
    ],
)
def test_what_cannot_be_quantized_is_refused(w, bits, says):
    with pytest.raises(ValueError, match=says):
        quantize(w, bits)
