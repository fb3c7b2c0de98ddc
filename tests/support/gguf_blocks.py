"""Makes blocks of every kind that GGUF files have: from weights where the gguf package can, else at random."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

FROM_WEIGHTS = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16)
"""Kinds that the gguf package can write."""
# Where the float16 factors of a block are, and how large they have to be for weights of about 0.1.
_HALVES = {
    Kind.Q2_K: ((80, 0.01), (82, 0.01)),
    Kind.Q3_K: ((108, 0.002),),
    Kind.Q4_K: ((0, 0.0004), (2, 0.004)),
    Kind.Q5_K: ((0, 0.0002), (2, 0.004)),
    Kind.Q6_K: ((208, 0.0001),),
    Kind.IQ4_NL: ((0, 0.002),),
    Kind.IQ4_XS: ((0, 0.0001),),
}
ANY = (*FROM_WEIGHTS[:5], *_HALVES)


def random_blocks(kind: Kind, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make rows of random blocks: (rows, bytes) uint8."""
    size, length = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // size, length), dtype=np.uint8)
    for offset, factor in _HALVES[kind]:
        halves = (rng.uniform(0.5, 1, blocks.shape[:2]) * factor).astype("<f2")
        blocks[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def blocks_of(weights: NDArray[np.float32], kind: Kind) -> NDArray[np.uint8]:
    """Quantize weights (N, K), or make random blocks of the same shape."""
    if kind in _HALVES:
        return random_blocks(kind, *weights.shape, np.random.default_rng(weights.shape[0]))
    packed: NDArray[np.uint8] = gguf.quants.quantize(weights, kind)
    return packed
