"""GGUF's quantized blocks as our own: the same numbers, nothing rounded again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType as Kind

from export.model.quantized_matrix import QuantizedMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BYTES = {Kind.Q4_0: 18, Kind.Q4_1: 20, Kind.Q8_0: 34}
_BLOCK = 32

EXACT = frozenset(_BYTES)
"""Kinds of blocks that `exact_blocks` takes."""


def exact_blocks(data: NDArray[np.uint8], kind: Kind) -> QuantizedMatrix:
    """Take rows of GGUF blocks apart.

    Q4_0 is d * (q - 8), Q8_0 is d * q with signed q, Q4_1 is d * q + m; d and m are float16. For the last, the whole
    zero point nearest to -m / d goes with the codes and what is left of m becomes the residual.

    Args:
        data: (N, bytes a row) uint8.
        kind: one of `EXACT`.

    Raises:
        KeyError: another kind.
    """
    rows = data.shape[0]
    blocks = np.ascontiguousarray(data).reshape(rows, -1, _BYTES[kind])
    scales = _halves(blocks[..., 0:2])
    if kind == Kind.Q8_0:
        # Signed to unsigned: adding 128 is flipping the sign bit.
        return QuantizedMatrix(8, _BLOCK, (blocks[..., 2:] ^ np.uint8(0x80)).reshape(rows, -1), scales)
    nibbles = blocks[..., -16:]
    codes: NDArray[np.uint8] = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=-1).reshape(
        rows, -1
    )
    if kind == Kind.Q4_0:
        return QuantizedMatrix(4, _BLOCK, codes, scales)
    minima = _halves(blocks[..., 2:4])
    usable = scales != 0
    zeros = np.clip(np.rint(-minima / np.where(usable, scales, 1)), 0, 15) * usable
    return QuantizedMatrix(4, _BLOCK, codes, scales, zeros.astype(np.uint8), minima + scales * zeros)


def _halves(pairs: NDArray[Any]) -> NDArray[np.float32]:
    """(..., 2) bytes as float16, widened."""
    return np.ascontiguousarray(pairs).view(np.float16)[..., 0].astype(np.float32)
