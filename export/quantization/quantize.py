"""Block quantization: stores a weight matrix as small integers with a scale, zero point and residual per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from export.errors import UnsupportedQuantizationError
from export.model.quantized_matrix import BLOCK_SIZE, QuantizedMatrix, midpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.model.architecture import Architecture


Grid: TypeAlias = Literal["symmetric", "asymmetric", "affine"]
"""The possible levels of a block.

- "symmetric": s * (q - midpoint); no zero point is stored.
- "asymmetric": s * (q - z) with an integer z; zero stays exactly representable.
- "affine": s * (q - z) + r, any line; r is stored separately, as extra columns over block sums (`residual_columns`).
"""

_SMALLEST_SCALE = np.float32(2.0**-24)  # float16's smallest positive number
_LARGEST_SCALE = np.float32(65504.0)
_CHUNK = 1 << 17  # blocks per search; bounds its memory
_REFINEMENT = 1 / 16
_SHRINKS = {4: np.linspace(1.0, 0.7, 9), 8: np.array([1.0])}


@dataclass(frozen=True, eq=False)
class BlockGrids:
    """The levels of n blocks, before any weight is rounded; fields as in `QuantizedMatrix`.

    Attributes:
        scales: (n,) float32.
        zeros: (n,) float32, integers.
        residual: (n,) float32; zero if the grid has no residual.
    """

    bits: int
    scales: NDArray[np.float32]
    zeros: NDArray[np.float32]
    residual: NDArray[np.float32]

    def codes(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the nearest codes to `weights` (n, any), as integers in float32."""
        codes = (weights - self.residual[:, None]) / self.scales[:, None] + self.zeros[:, None]
        rounded: NDArray[np.float32] = np.clip(np.rint(codes), 0, np.float32(levels(self.bits)))
        return rounded

    def values(self, codes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values of `codes` (n, any)."""
        return self.scales[:, None] * (codes - self.zeros[:, None]) + self.residual[:, None]


def levels(bits: int) -> int:
    """Return the largest code."""
    return (1 << bits) - 1


def check_widths(architecture: Architecture) -> None:
    """Check that every row of a model's matrices can be split into blocks.

    Raises:
        UnsupportedQuantizationError: a width is not a multiple of `BLOCK_SIZE`.
    """
    for what, width in (
        ("hidden size", architecture.hidden),
        ("width of the attention heads", architecture.query_width),
        ("intermediate size", architecture.intermediate),
    ):
        if width % BLOCK_SIZE:
            raise UnsupportedQuantizationError(
                f"The model's {what} is {width}, not a multiple of {BLOCK_SIZE}. Use `quantize` fp32."
            )


def quantize(
    weights: NDArray[np.float32],
    bits: int,
    grid: Grid = "symmetric",
    *,
    importance: NDArray[np.float32] | None = None,
    block_size: int = BLOCK_SIZE,
) -> QuantizedMatrix:
    """Round every weight to the nearest level of its block, after a search for the levels with least squared error.

    Weights that already lie on such a grid (as in a model made from a quantized file) stay exact, up to float16's
    rounding of the scale.

    Args:
        weights: (N, K) float32, finite.
        bits: 4 or 8.
        grid: see `Grid`.
        importance: (K,) float32, weight of each column's squared error (a Hessian's diagonal); None: all equal.
        block_size: columns that share a scale.

    Raises:
        ValueError: K is not a multiple of `block_size`, `bits` is neither 4 nor 8, or a weight is not finite.
    """
    rows, columns = weights.shape
    grids = fit_grids(weights, bits, grid, importance=importance, block_size=block_size)
    codes = np.empty((rows * columns // block_size, block_size), np.uint8)
    blocks = weights.reshape(-1, block_size)
    for part in _chunks(len(blocks)):
        codes[part] = _take(grids, part).codes(blocks[part])
    return assemble(codes.reshape(rows, columns), grids, grid, block_size)


def assemble(codes: NDArray[np.uint8], grids: BlockGrids, grid: Grid, block_size: int = BLOCK_SIZE) -> QuantizedMatrix:
    """Combine codes (N, K) and the grids of their blocks (row by row)."""
    shape = (codes.shape[0], codes.shape[1] // block_size)
    return QuantizedMatrix(
        bits=grids.bits,
        block_size=block_size,
        codes=codes,
        scales=grids.scales.reshape(shape),
        zeros=None if grid == "symmetric" else grids.zeros.astype(np.uint8).reshape(shape),
        residual=grids.residual.reshape(shape) if grid == "affine" else None,
    )


def fit_grids(
    weights: NDArray[np.float32],
    bits: int,
    grid: Grid,
    *,
    importance: NDArray[np.float32] | None = None,
    block_size: int = BLOCK_SIZE,
) -> BlockGrids:
    """Find the levels of every block of (N, K) weights; arguments and errors as in `quantize`."""
    if bits not in _SHRINKS:
        raise ValueError(f"Weights can be stored in 4 or 8 bits, not {bits}.")
    columns = weights.shape[1]
    if columns % block_size:
        raise ValueError(f"A row of {columns} weights can't be cut into blocks of {block_size}.")
    if not np.isfinite(weights).all():
        raise ValueError("A weight is not a finite number.")
    blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, block_size)
    if importance is None:
        importance = np.ones(columns, np.float32)
    # Only ratios inside a block matter; normalization prevents overflow and underflow in float32.
    importance = np.maximum(importance.astype(np.float32), 0).reshape(-1, block_size)
    largest = importance.max(axis=1, keepdims=True)
    importance = np.where(largest > 0, importance / np.where(largest > 0, largest, 1), 1).astype(np.float32) + 1e-6
    parts = []
    for part in _chunks(len(blocks)):
        column_block = np.arange(part.start, min(part.stop, len(blocks))) % (columns // block_size)
        parts.append(_search(blocks[part], importance[column_block], bits, grid))
    return BlockGrids(
        bits,
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        np.concatenate([part.residual for part in parts]),
    )


def residual_columns(residual: NDArray[np.float32]) -> QuantizedMatrix:
    """Store a residual as 4-bit columns, to be multiplied by block sums of the input (through `residual_mix`).

    The first columns are the residual itself. The columns that pad it to whole blocks refine the first ones, in
    fourteenths of a step. Otherwise a 4-bit residual would be the largest error of otherwise exact weights.

    Args:
        residual: (N, K // block_size).

    Returns:
        (N, C) symmetric, C a multiple of 32. `stored_residual` returns the residual that it represents.
    """
    rows, blocks = residual.shape
    columns = residual_mix(blocks).shape[1]
    refined = min(columns - blocks, blocks)
    wanted = np.zeros((rows, columns), np.float32)
    wanted[:, :blocks] = residual
    scales = _scales_of_largest(wanted)
    coarse = _signed_codes(wanted, scales)
    rest = wanted - np.repeat(scales, BLOCK_SIZE, axis=1) * coarse
    wanted[:, blocks : blocks + refined] = rest[:, :refined] / _REFINEMENT
    whole = -(-blocks // BLOCK_SIZE)  # later blocks hold only refinements, with their own scales
    scales[:, whole:] = _scales_of_largest(wanted)[:, whole:]
    codes = (_signed_codes(wanted, scales) + midpoint(4)).astype(np.uint8)
    return QuantizedMatrix(4, BLOCK_SIZE, codes, scales)


def residual_mix(blocks: int) -> NDArray[np.float32]:
    """Return the matrix (blocks, C) that maps block sums (..., blocks) to the inputs of `residual_columns`."""
    columns = blocks + -blocks % BLOCK_SIZE
    if 2 * (columns - blocks) < blocks:
        columns += BLOCK_SIZE  # otherwise less than half of the residuals would be refined
    mix = np.eye(blocks, columns, dtype=np.float32)
    refined = np.arange(min(columns - blocks, blocks))
    mix[refined, blocks + refined] = _REFINEMENT
    return mix


def stored_residual(residual: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the residual that `residual_columns` represents, in the same shape."""
    columns = residual_columns(residual).dequantize()
    return columns @ residual_mix(residual.shape[1]).T


def _scales_of_largest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute scales at which 4 bits reach each block's largest magnitude on both sides."""
    largest = np.abs(values.reshape(len(values), -1, BLOCK_SIZE)).max(axis=2)
    return round_scales(largest / np.float32(midpoint(4) - 1))


def _signed_codes(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    limit = np.float32(midpoint(4) - 1)
    codes: NDArray[np.float32] = np.clip(np.rint(values / np.repeat(scales, BLOCK_SIZE, axis=1)), -limit, limit)
    return codes


def round_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round scales to the nearest float16 value except zero, because they are stored as float16."""
    magnitude = np.clip(np.abs(scales), _SMALLEST_SCALE, _LARGEST_SCALE)
    rounded: NDArray[np.float32] = np.copysign(magnitude, scales).astype(np.float16).astype(np.float32)
    return rounded


def _search(blocks: NDArray[np.float32], importance: NDArray[np.float32], bits: int, grid: Grid) -> BlockGrids:
    """Try several ranges per block, refine each by least squares, keep the best: (n, block) -> grids of n blocks."""
    best: BlockGrids | None = None
    best_error = np.full(len(blocks), np.inf, np.float32)
    for candidate in _candidates(blocks, bits, grid):
        codes = candidate.codes(blocks)
        for trial in (candidate, _refit(blocks, importance, codes, candidate, grid)):
            trial_codes = trial.codes(blocks)
            miss = trial.values(trial_codes) - blocks
            error = (importance * miss**2).sum(axis=1)
            if bits == 8:
                # No weight may pay with more than a step for a smaller sum.
                error = np.where(np.abs(miss).max(axis=1) > np.abs(trial.scales), np.inf, error)
            best, best_error = (trial, error) if best is None else _better(best, best_error, trial, error)
    assert best is not None
    return best


def _candidates(blocks: NDArray[np.float32], bits: int, grid: Grid) -> list[BlockGrids]:
    top, middle = np.float32(levels(bits)), np.float32(midpoint(bits))
    nothing = np.zeros(len(blocks), np.float32)
    if grid == "symmetric":
        # The side with the larger magnitude gets the extra negative level; the scale's sign selects the side.
        extreme = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
        scales = [-extreme / middle * np.float32(shrink) for shrink in _SHRINKS[bits]] + [extreme / (middle - 1)]
        middles = np.full_like(nothing, middle)
        return [BlockGrids(bits, round_scales(scale), middles, nothing) for scale in scales]
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    if grid == "asymmetric":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    found = []
    for shrink in _SHRINKS[bits]:
        scale = round_scales((high - low) * np.float32(shrink) / top)
        middle_of_range = (low + high) / 2
        found.append(_line(bits, scale, middle_of_range - scale * (top / 2), grid))
    return found


def _line(bits: int, scale: NDArray[np.float32], offset: NDArray[np.float32], grid: Grid) -> BlockGrids:
    """Return the grid nearest to scale * q + offset."""
    zeros = np.clip(np.rint(-offset / scale), 0, levels(bits)).astype(np.float32)
    residual = offset + scale * zeros if grid == "affine" else np.zeros_like(offset)
    return BlockGrids(bits, scale, zeros, residual.astype(np.float32))


def _refit(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    codes: NDArray[np.float32],
    like: BlockGrids,
    grid: Grid,
) -> BlockGrids:
    """Compute the best scale (and offset) for given codes by weighted least squares."""
    if grid == "affine":
        total = importance.sum(axis=1)
        mean_code = (importance * codes).sum(axis=1) / total
        mean_weight = (importance * blocks).sum(axis=1) / total
        centred = codes - mean_code[:, None]
        spread = (importance * centred**2).sum(axis=1)
        slope = (importance * centred * (blocks - mean_weight[:, None])).sum(axis=1)
        usable = (spread > 0) & (slope > 0)
        scale = round_scales(np.where(usable, slope / np.where(usable, spread, 1), like.scales).astype(np.float32))
        return _line(like.bits, scale, (mean_weight - scale * mean_code).astype(np.float32), grid)
    steps = codes - like.zeros[:, None]
    spread = (importance * steps**2).sum(axis=1)
    slope = (importance * steps * blocks).sum(axis=1)
    usable = (spread > 0) & (slope != 0)
    scale = np.where(usable, slope / np.where(usable, spread, 1), like.scales).astype(np.float32)
    return BlockGrids(like.bits, round_scales(scale), like.zeros, like.residual)


def _better(
    best: BlockGrids, best_error: NDArray[np.float32], other: BlockGrids, error: NDArray[np.float32]
) -> tuple[BlockGrids, NDArray[np.float32]]:
    wins = error < best_error
    return (
        BlockGrids(
            best.bits,
            np.where(wins, other.scales, best.scales),
            np.where(wins, other.zeros, best.zeros),
            np.where(wins, other.residual, best.residual),
        ),
        np.minimum(error, best_error),
    )


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def _take(grids: BlockGrids, part: slice) -> BlockGrids:
    return BlockGrids(grids.bits, grids.scales[part], grids.zeros[part], grids.residual[part])
