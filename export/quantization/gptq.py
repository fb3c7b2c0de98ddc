"""GPTQ: rounds weights column by column, and the columns not yet rounded compensate for each column's error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023
(arXiv 2210.17323). We differ from the paper: levels are searched before rounding, weighted by the Hessian's diagonal.
Columns are rounded in order of importance, but blocks still hold adjacent columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.model.quantized_matrix import QuantizedMatrix
from export.quantization.quantize import BlockGrids, Grid, assemble, fit_grids, levels, stored_residual

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Ten times the paper's value, because a few thousand calibration tokens are less reliable than the paper's 260,000.
DAMPING = 0.1
_PANEL = 64  # columns rounded before the rest of the matrix is updated


def gptq(
    weights: NDArray[np.float32],
    bits: int,
    hessian: NDArray[np.float32],
    grid: Grid = "affine",
    *,
    damping: float = DAMPING,
) -> QuantizedMatrix:
    """Quantize a matrix so that its outputs, rather than its weights, change least.

    Args:
        weights: (N, K) float32.
        bits: 4 or 8.
        hessian: (K, K) float32, the sum (or mean) of x xᵀ over the expected inputs of the matrix.
        grid: see `Grid`.
        damping: share of the Hessian's mean diagonal that is added to the diagonal (section 3.3 of the paper).

    Raises:
        ValueError: the shapes don't match, or as in `quantize`.
    """
    rows, columns = weights.shape
    if hessian.shape != (columns, columns):
        raise ValueError(f"A matrix with {columns} columns can't go with a Hessian of {hessian.shape}.")
    grids = fit_grids(weights, bits, grid, importance=np.diag(hessian).astype(np.float32))
    grids = _as_stored(grids, rows, grid)
    codes = round_with_feedback(weights, grids, hessian, damping=damping)
    return assemble(codes, grids, grid)


def round_with_feedback(
    weights: NDArray[np.float32],
    grids: BlockGrids,
    hessian: NDArray[np.float32],
    *,
    damping: float = DAMPING,
) -> NDArray[np.uint8]:
    """Find codes (N, K) with a small weighted error tr((Q - W) H (Q - W)ᵀ) (algorithm 1 of the paper).

    Columns are rounded in descending order of the Hessian's diagonal, so that most columns can still compensate for the
    important ones. Each block's levels are fixed beforehand.
    """
    rows, columns = weights.shape
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _inverse_factor(hessian[np.ix_(order, order)], damping)
    # Transposed, so that every step accesses contiguous memory.
    pending = np.ascontiguousarray(weights.T[order], np.float32)
    block_of = order // (columns * rows // len(grids.scales))
    scales, zeros, rests = (_by_block(part, rows) for part in (grids.scales, grids.zeros, grids.residual))
    top = np.float32(levels(grids.bits))
    codes = np.empty((columns, rows), np.uint8)
    for start in range(0, columns, _PANEL):
        stop = min(start + _PANEL, columns)
        errors = np.empty((stop - start, rows), np.float32)
        for index in range(start, stop):
            block = block_of[index]
            code = np.rint((pending[index] - rests[block]) / scales[block] + zeros[block]).clip(0, top)
            codes[order[index]] = code
            value = scales[block] * (code - zeros[block]) + rests[block]
            error = (pending[index] - value) / factor[index, index]
            errors[index - start] = error
            pending[index + 1 : stop] -= factor[index, index + 1 : stop, None] * error
        pending[stop:] -= factor[start:stop, stop:].T @ errors
    return np.ascontiguousarray(codes.T)


def _inverse_factor(hessian: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
    """Compute the upper triangular U with Uᵀ U = H⁻¹; row i says how later columns compensate for column i's error.

    With the columns reversed, H's Cholesky factor is upper triangular and U is its inverse. This takes a third of the
    work of inverting H first.
    """
    import torch

    turned = torch.from_numpy(_damped(hessian, damping)).flip(0, 1)
    upper = torch.linalg.cholesky(turned).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype)
    factor: NDArray[np.float32] = torch.linalg.solve_triangular(upper, identity, upper=True).float().numpy()
    return factor


def _damped(hessian: NDArray[np.float32], damping: float) -> NDArray[np.float64]:
    damped = hessian.astype(np.float64)
    mean = float(np.diag(damped).mean())
    # Damping keeps the matrix invertible if calibration never used some inputs, or if all inputs were zero.
    damped[np.diag_indices_from(damped)] += damping * mean if mean > 0 else 1.0
    return damped


def _as_stored(grids: BlockGrids, rows: int, grid: Grid) -> BlockGrids:
    """Replace the residual by its value on the device, so that rounding also compensates for its error."""
    if grid != "affine":
        return grids
    residual = stored_residual(grids.residual.reshape(rows, -1))
    return BlockGrids(grids.bits, grids.scales, grids.zeros, residual.reshape(-1))


def _by_block(values: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.reshape(rows, -1).T)
