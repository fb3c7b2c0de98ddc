"""Weights as they are stored in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from numpy.typing import NDArray


BLOCK_SIZE = 32


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """w = scales * (codes - zeros) + residual, each block of a row with its own scale, zero and rest.

    Attributes:
        bits: 4 or 8.
        block_size: columns that share a scale.
        codes: (N, K) uint8, one code a byte, below 2**bits.
        scales: (N, K // block_size) float32, values that float16 holds exactly; may be negative.
        zeros: (N, K // block_size) uint8 below 2**bits, or None: the midpoint, 8 or 128.
        residual: (N, K // block_size) float32 added to every weight of the block, or None.
    """

    bits: int
    block_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None = None
    residual: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): output and input features."""
        rows, columns = self.codes.shape
        return rows, columns

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Some of the rows, as a matrix of their own."""
        part = slice(start, stop)
        zeros = None if self.zeros is None else self.zeros[part]
        residual = None if self.residual is None else self.residual[part]
        return QuantizedMatrix(self.bits, self.block_size, self.codes[part], self.scales[part], zeros, residual)

    def dequantize(self) -> NDArray[np.float32]:
        """The weights that the codes stand for: (N, K) float32."""
        rows, columns = self.codes.shape
        codes = self.codes.reshape(rows, -1, self.block_size).astype(np.float32)
        zeros: NDArray[np.float32] | np.float32 = np.float32(midpoint(self.bits))
        if self.zeros is not None:
            zeros = self.zeros.astype(np.float32)[..., None]
        weights = self.scales[..., None] * (codes - zeros)
        if self.residual is not None:
            weights += self.residual[..., None]
        return weights.reshape(rows, columns)


def midpoint(bits: int) -> int:
    """The zero point of a block that stores none."""
    return 1 << (bits - 1)


Matrix: TypeAlias = NDArray[np.float32] | QuantizedMatrix
"""(out_features, in_features), dense or quantized."""
