"""Defines block-quantized weight matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence


BLOCK_SIZE = 32


@dataclass(frozen=True, eq=False)
class TwoLevel:
    """Values of blocks as a source stores them: units * steps, exact in float32; one unit serves several blocks.

    Attributes:
        units: (N, blocks // n) float16.
        steps: (N, blocks) uint8 or int8; None means 1, with one unit per block.
    """

    units: NDArray[np.float16]
    steps: NDArray[Any] | None = None

    def values(self) -> NDArray[np.float32]:
        """Return the values (N, blocks) float32."""
        units = self.units.astype(np.float32)
        if self.steps is None:
            return units
        return np.repeat(units, self.steps.shape[1] // units.shape[1], axis=1) * self.steps.astype(np.float32)

    def rows(self, part: slice) -> TwoLevel:
        """Return some of the rows."""
        return TwoLevel(self.units[part], None if self.steps is None else self.steps[part])


@dataclass(frozen=True, eq=False)
class Source:
    """How the source stored a matrix, which is smaller than the form that the product wants.

    Attributes:
        scales: the matrix's scales.
        minima: the matrix's minima, or None if it has none.
        code_bits: 2, 3, 4, 6 or 8: bits that hold every code, or every index into `levels`.
        levels: (16,) uint8, the codes that 4-bit indices stand for, or None.
    """

    scales: TwoLevel
    minima: TwoLevel | None = None
    code_bits: int = 8
    levels: NDArray[np.uint8] | None = None

    def fits(self, other: Source) -> bool:
        """Whether rows of both can be stored as one."""
        return (
            self.code_bits == other.code_bits
            and (self.levels is None) == (other.levels is None)
            and _form(self.scales) == _form(other.scales)
            and _form(self.minima) == _form(other.minima)
        )


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """w = scales * (codes - zeros) + rest; each block of a row has its own scale, zero point and rest.

    The rest is `residual`, which a runtime may round, or scales * zeros - minima, which it may not.

    Attributes:
        bits: 4 or 8.
        block_size: columns that share a scale, 16 to 256.
        codes: (N, K) uint8, one code per byte, below 2**bits.
        scales: (N, K // block_size) float32; may be negative.
        zeros: (N, K // block_size) uint8 below 2**bits; None means the midpoint, 8 or 128.
        residual: (N, K // block_size) float32 added to every weight of the block, or None.
        minima: (N, K // block_size) float32 in place of `residual`: the weights are scales * codes - minima. The zero
            points only center the codes, and float32 represents scales * zeros - minima exactly.
        source: how the source stored it; None if it is to be stored as it is here.
        parts: the matrices that this one stacks, if they are stored in different ways; else empty.
    """

    bits: int
    block_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None = None
    residual: NDArray[np.float32] | None = None
    minima: NDArray[np.float32] | None = None
    source: Source | None = None
    parts: tuple[QuantizedMatrix, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): output and input features."""
        rows, columns = self.codes.shape
        return rows, columns

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Return some of the rows as a matrix."""
        part = slice(start, stop)
        source = self.source
        if source is not None:
            minima = None if source.minima is None else source.minima.rows(part)
            source = replace(source, scales=source.scales.rows(part), minima=minima)
        return QuantizedMatrix(
            self.bits,
            self.block_size,
            self.codes[part],
            self.scales[part],
            _part(self.zeros, part),
            _part(self.residual, part),
            _part(self.minima, part),
            source,
        )

    def with_wide_codes(self) -> QuantizedMatrix:
        """Return the same matrix, whose codes are to be stored in `bits`."""
        if self.source is None:
            return self
        return replace(self, source=replace(self.source, code_bits=self.bits, levels=None))

    def zero_points(self) -> NDArray[np.uint8]:
        """Return the zero points (N, K // block_size), also where they are the midpoint."""
        if self.zeros is not None:
            return self.zeros
        return np.full(self.scales.shape, midpoint(self.bits), np.uint8)

    def rest(self) -> NDArray[np.float32] | None:
        """Return what is added to every weight of a block (N, K // block_size), or None."""
        if self.minima is None:
            return self.residual
        return self.scales * self.zero_points().astype(np.float32) - self.minima

    def lowest(self) -> NDArray[np.float32]:
        """Return the minima, also where they are what the zero points stand for; exact without a residual."""
        if self.minima is not None:
            return self.minima
        found: NDArray[np.float32] = self.scales * self.zero_points().astype(np.float32)
        return found if self.residual is None else found - self.residual

    def dequantize(self) -> NDArray[np.float32]:
        """Compute the weights (N, K) float32, rounded once."""
        rows, columns = self.codes.shape
        codes = self.codes.reshape(rows, -1, self.block_size).astype(np.float32)
        weights = self.scales[..., None] * (codes - self.zero_points().astype(np.float32)[..., None])
        rest = self.rest()
        if rest is not None:
            weights += rest[..., None]
        return weights.reshape(rows, columns)


def midpoint(bits: int) -> int:
    """Return the zero point of a block that does not store one."""
    return 1 << (bits - 1)


def stack_rows(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Stack matrices of the same bits, block size and width."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    zeros = residual = minima = source = None
    if any(matrix.zeros is not None for matrix in matrices):
        zeros = np.concatenate([matrix.zero_points() for matrix in matrices])
    if any(matrix.minima is not None for matrix in matrices):
        # A matrix without minima has those that its zero points stand for.
        minima = np.concatenate([matrix.lowest() for matrix in matrices])
    elif any(matrix.residual is not None for matrix in matrices):
        residual = np.concatenate([_or_zero(matrix.residual, matrix.scales) for matrix in matrices])
    sources = [matrix.source for matrix in matrices if matrix.source is not None]
    alike = not sources
    if len(sources) == len(matrices) and all(sources[0].fits(other) for other in sources):
        scales = _stacked([one.scales for one in sources])
        lows = [one.minima for one in sources if one.minima is not None]
        source, alike = replace(sources[0], scales=scales, minima=_stacked(lows) if lows else None), True
    return QuantizedMatrix(
        first.bits,
        first.block_size,
        np.concatenate([matrix.codes for matrix in matrices]),
        np.concatenate([matrix.scales for matrix in matrices]),
        zeros,
        residual,
        minima,
        source,
        () if alike else tuple(matrices),
    )


def centered_zeros(scales: NDArray[np.float32], minima: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """Choose the zero points (N, blocks) nearest to minima / scales at which scales * zeros - minima is exact.

    Zero is always exact. The products of a rounded input have less noise, the nearer zero points are.
    """
    wide, low = scales.astype(np.float64), minima.astype(np.float64)
    usable = wide != 0
    zeros = np.clip(np.rint(low / np.where(usable, wide, 1)), 0, (1 << bits) - 1) * usable
    products = wide * zeros  # 17 bits times 8: exact
    rest = products - low
    exact = (rest.astype(np.float32) == rest) & (rest + low == products) & (products.astype(np.float32) == products)
    chosen: NDArray[np.uint8] = np.where(exact, zeros, 0).astype(np.uint8)
    return chosen


def _form(values: TwoLevel | None) -> tuple[int, str] | None:
    if values is None:
        return None
    if values.steps is None:
        return 1, "none"
    return values.steps.shape[1] // values.units.shape[1], values.steps.dtype.name


def _stacked(values: Sequence[TwoLevel]) -> TwoLevel:
    steps = [one.steps for one in values if one.steps is not None]
    return TwoLevel(np.concatenate([one.units for one in values]), np.concatenate(steps) if steps else None)


def _part(array: NDArray[Any] | None, part: slice) -> Any:
    return None if array is None else array[part]


def _or_zero(array: NDArray[np.float32] | None, like: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros_like(like) if array is None else array


Matrix: TypeAlias = NDArray[np.float32] | QuantizedMatrix
"""(out_features, in_features), dense or quantized."""
