"""Conditioned inputs: the same product, with less of it lost to 8 bits a token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.executorch.conditioning import block_scales
from export.executorch.linear import Conditioning, JoinedLinear
from export.quantization.quantize import quantize

COLUMNS = 96


def matrices(seed, bits=4):
    rng = np.random.default_rng(seed)
    return [
        quantize(rng.normal(size=(rows, COLUMNS)).astype(np.float32), bits, "affine" if bits == 4 else "symmetric")
        for rows in (24, 40)
    ]


def uneven(seed, tokens=64):
    """An input with a large block, and two channels that are larger by far."""
    x = np.random.default_rng(seed).normal(size=(1, tokens, COLUMNS)).astype(np.float32)
    x[..., 32:64] *= 20
    x[..., [7, 70]] *= 500
    return x


def error(module, sources, x):
    with torch.no_grad():
        outputs = module(torch.from_numpy(x)).split([matrix.shape[0] for matrix in sources], -1)
    errors = []
    for found, matrix in zip(outputs, sources, strict=True):
        # The large channels' share is the same for all, and hides what becomes of the others.
        expected = x @ matrix.dequantize().T
        small = x.copy()
        small[..., [7, 70]] = 0
        errors.append(np.sqrt(((found.numpy() - expected) ** 2).mean()) / (small @ matrix.dequantize().T).std())
    return max(errors)


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=15)
@given(
    seed=st.integers(0, 99),
    exponents=st.lists(st.integers(-6, 0), min_size=3, max_size=3),
    precise=st.sets(st.integers(0, COLUMNS - 1), max_size=5),
)
def test_any_conditioning_leaves_the_product_what_it_was(bits, seed, exponents, precise):
    sources = matrices(seed, bits)
    module = JoinedLinear(sources)
    x = np.random.default_rng(seed + 1).normal(size=(1, 8, COLUMNS)).astype(np.float32)
    scales = np.repeat(np.float32(2.0) ** np.array(exponents, np.float32), 32)
    module.condition(Conditioning(scales, np.array(sorted(precise), np.int64)))
    # As the conditioned input is, but for what 8 bits take from the blocks that are made small beside the others.
    with torch.no_grad():
        outputs = module(torch.from_numpy(x)).split([matrix.shape[0] for matrix in sources], -1)
        for found, matrix in zip(outputs, sources, strict=True):
            expected = x @ matrix.dequantize().T
            assert np.sqrt(((found.numpy() - expected) ** 2).mean()) / expected.std() < 0.05 * 2 ** -min(exponents) / 4


def test_an_uneven_input_loses_less(seed=3):
    sources, x = matrices(seed), uneven(seed)
    module = JoinedLinear(sources)
    sizes = (x[0].astype(np.float64) ** 4).sum(0) ** 0.25
    large = np.array([7, 70])
    bare = error(module, sources, x)
    module.condition(Conditioning(block_scales(sizes, 0.75, large), large))
    conditioned = error(module, sources, x)
    assert conditioned < bare / 10
    module.condition(Conditioning(block_scales(sizes, 0.0, large), large))
    assert conditioned < error(module, sources, x)


def test_blocks_are_made_even_but_for_what_is_not_rounded():
    sizes = np.ones(COLUMNS)
    sizes[32:64], sizes[[7, 70]] = 16.0, 1000.0
    found = block_scales(sizes, 0.5, np.array([7, 70]))
    np.testing.assert_allclose(found, np.repeat([0.25, 1.0, 0.25], 32))
    silent = block_scales(np.zeros(COLUMNS), 0.75, np.empty(0, np.int64))
    assert np.isfinite(silent).all() and (silent > 0).all()
