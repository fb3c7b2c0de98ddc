"""Matrices as XNNPACK multiplies them: exact where the source's blocks are, with inputs rounded as on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.executorch.linear import JoinedLinear, embedding_module, head_module
from export.model.quantized_matrix import QuantizedMatrix
from export.quantization.quantize import quantize

ROUNDING = 0.02  # of 8-bit inputs, beside outputs of unit spread
BFLOAT16 = 2.0**-8


def matrix_of(seed, rows=40, columns=96, bits=4, grid="affine"):
    weights = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    return quantize(weights, bits, grid)


def product(x, matrix):
    return x @ matrix.dequantize().T


def one_hot_columns(module, columns):
    """The weights that a module computes with: a one-hot input survives 8-bit rounding."""
    with torch.no_grad():
        return module(torch.eye(columns)[None])[0].numpy().T


@given(st.integers(0, 2**32 - 1), st.sampled_from(["symmetric", "asymmetric", "affine"]))
@settings(max_examples=20)
def test_blocks_of_any_grid_keep_their_weights_up_to_bfloat16_scales(seed, grid):
    matrix = matrix_of(seed, grid=grid)
    found = one_hot_columns(JoinedLinear([matrix]), 96)
    largest = np.abs(matrix.scales).max() * 15
    np.testing.assert_allclose(found, matrix.dequantize(), atol=largest * BFLOAT16)


def test_scales_that_are_negative_or_zero_are_carried_over():
    codes = np.random.default_rng(0).integers(0, 16, (6, 64)).astype(np.uint8)
    scales = np.array([[-0.5, 0.25]] * 3 + [[0.0, 1.0]] * 3, np.float32)
    matrix = QuantizedMatrix(4, 32, codes, scales, residual=np.full((6, 2), 0.125, np.float32))
    np.testing.assert_allclose(one_hot_columns(JoinedLinear([matrix]), 64), matrix.dequantize(), atol=0.01)


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_are_rounded_to_8_bits_for_each_token(bits):
    matrix = matrix_of(1, bits=bits, grid="symmetric")
    # Tokens of very different size: a scale for all of them would lose the small one.
    x = np.random.default_rng(2).normal(size=(1, 3, 96)).astype(np.float32) * np.array(
        [[[1], [1e-3], [1e3]]], np.float32
    )
    found = JoinedLinear([matrix])(torch.from_numpy(x)).detach().numpy()
    expected = product(x, matrix)
    for token in range(3):
        error = np.abs(found[0, token] - expected[0, token]).max() / expected[0, token].std()
        assert 0 < error < 3 * ROUNDING


def test_an_offset_far_above_the_blocks_steps_does_not_cost_precision():
    # Rounded like the rest of the input, sums of blocks would make an error of tens of percent here.
    codes = np.random.default_rng(3).integers(0, 16, (40, 96)).astype(np.uint8)
    offsets = np.random.default_rng(4).normal(size=(40, 3)).astype(np.float32) * 6
    matrix = QuantizedMatrix(4, 32, codes, np.ones((40, 3), np.float32), residual=offsets)
    x = np.random.default_rng(5).normal(size=(1, 8, 96)).astype(np.float32)
    expected = product(x, matrix)
    error = np.abs(JoinedLinear([matrix])(torch.from_numpy(x)).detach().numpy() - expected)
    assert np.sqrt((error**2).mean()) / expected.std() < ROUNDING


def test_matrices_of_all_kinds_share_one_input_and_add_their_biases():
    dense = np.random.default_rng(6).normal(size=(8, 96)).astype(np.float32)
    matrices = [matrix_of(7), matrix_of(8, bits=8, grid="symmetric"), dense]
    biases = [np.full(len(m.codes) if isinstance(m, QuantizedMatrix) else len(m), 100.0, np.float32) for m in matrices]
    x = np.random.default_rng(9).normal(size=(1, 5, 96)).astype(np.float32)
    found = JoinedLinear(matrices, biases)(torch.from_numpy(x))
    outputs = found.split([len(bias) for bias in biases], -1)
    for output, matrix in zip(outputs, matrices, strict=True):
        expected = x @ matrix.T if isinstance(matrix, np.ndarray) else product(x, matrix)
        np.testing.assert_allclose(output.detach().numpy() - 100, expected, atol=1.0)
    np.testing.assert_allclose(outputs[2].detach().numpy() - 100, x @ dense.T, atol=1e-4)


@pytest.mark.parametrize("quantized", [True, False])
def test_embedding_and_head_read_the_same_table(quantized):
    table = matrix_of(10, rows=50, bits=8, grid="symmetric")
    weights = table.dequantize()
    stored = table if quantized else weights
    ids = torch.tensor([[0, 49, 7]])
    looked_up = embedding_module(stored)(ids)
    atol = np.abs(weights).max() / 127 if quantized else 0
    np.testing.assert_allclose(looked_up.detach().numpy()[0], weights[[0, 49, 7]], atol=atol)
    logits = head_module(stored)(looked_up).detach().numpy()[0]
    np.testing.assert_allclose(logits, weights[[0, 49, 7]] @ weights.T, atol=0.03 * np.abs(logits).max())
