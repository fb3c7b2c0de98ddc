"""Reads matrices that GPTQ, AWQ and compressed-tensors packed into integers, as their own libraries define them.

All three are scales * (codes - zeros) in groups of a row. They differ in which axis is packed, in which order, and in
what a stored zero point means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import SourceError, UnsupportedQuantizationError
from export.model.quantized_matrix import QuantizedMatrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Part = Callable[[str], "NDArray[Any] | None"]

_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Where AWQ's kernel puts the n-th of 8 columns in a 32-bit word, counted in 4-bit places."""


def gptq(part: Part, bits: int, v2: bool, where: str) -> tuple[QuantizedMatrix | None, NDArray[np.float32]]:
    """Read a layer of GPTQ (Frantar et al., ICLR 2023) in the layout of AutoGPTQ and GPTQModel.

    Args:
        part: returns the layer's `qweight` (K * bits / 32, N) int32, `qzeros` (groups, N * bits / 32) int32, `scales`
            (groups, N) and perhaps `g_idx` (K,), the group of each column.
        bits: 2, 4 or 8.
        v2: zero points are stored as they are, not less one.
        where: the matrix, for error messages.

    Returns:
        The matrix, or None if its columns are not grouped in order ("act-order"), and its weights (N, K) float32.
    """
    packed, scales = _needed(part, "qweight", where), _needed(part, "scales", where).T
    codes = _unpacked(packed.T, bits)
    zeros = _unpacked(_needed(part, "qzeros", where), bits).T
    if not v2:
        if (zeros == (1 << bits) - 1).any():
            raise SourceError(
                f"The matrix '{where}' has a zero point of {1 << bits}, which libraries read in two ways. Use a "
                "checkpoint in the format gptq_v2."
            )
        zeros = zeros + np.uint8(1)
    groups, columns = scales.shape[1], codes.shape[1]
    index = part("g_idx")
    ordered = np.arange(columns) // (-(-columns // groups))
    if index is None or np.array_equal(index, ordered):
        matrix = grouped(codes, scales, zeros, 8 if bits == 8 else 4, where)
        return matrix, matrix.dequantize()
    if index.min() < 0 or index.max() >= groups:
        raise SourceError(f"The matrix '{where}' names a group that doesn't exist. Download the model again.")
    weights = scales[:, index] * (codes.astype(np.float32) - zeros[:, index].astype(np.float32))
    return None, weights


def awq(part: Part, where: str) -> QuantizedMatrix:
    """Read a layer of AWQ (Lin et al., MLSys 2024) in AutoAWQ's layout "gemm", 4 bits.

    Args:
        part: returns `qweight` (K, N / 8) int32, `qzeros` (groups, N / 8) int32 and `scales` (groups, N).
        where: the matrix, for error messages.
    """

    def columns(packed: NDArray[Any]) -> NDArray[np.uint8]:
        apart = _unpacked(packed, 4).reshape(len(packed), -1, 8)
        return apart[..., _AWQ_ORDER].reshape(len(packed), -1)

    codes, zeros = columns(_needed(part, "qweight", where)).T, columns(_needed(part, "qzeros", where)).T
    return grouped(np.ascontiguousarray(codes), _needed(part, "scales", where).T, zeros, 4, where)


def compressed(part: Part, bits: int, where: str) -> QuantizedMatrix:
    """Read a layer of compressed-tensors in the format "pack-quantized" (or "int-quantized", with 8-bit integers).

    Args:
        part: returns `weight_packed` (N, words) int32 and `weight_shape` (2,), or `weight` (N, K) int8; `weight_scale`
            (N, groups), (N,) or (1,); and perhaps `weight_zero_point` (packed along N, or (N, groups) int8).
        bits: 4 or 8.
        where: the matrix, for error messages.
    """
    packed, points = part("weight_packed"), part("weight_zero_point")
    middle = np.uint8(1 << (bits - 1))
    if packed is not None:
        rows, columns = (int(size) for size in _needed(part, "weight_shape", where))
        codes = _unpacked(packed, bits)[:, :columns]
        if codes.shape != (rows, columns):
            raise SourceError(f"The matrix '{where}' has not the shape it names. Download the model again.")
    else:
        plain = _needed(part, "weight", where)
        if plain.dtype != np.int8:
            raise SourceError(f"The matrix '{where}' is stored as {plain.dtype}, not as 8-bit integers.")
        codes = plain.view(np.uint8) ^ np.uint8(0x80) if bits == 8 else (plain + np.int8(middle)).view(np.uint8)
    rows = len(codes)
    scales = _needed(part, "weight_scale", where)
    scales = np.broadcast_to(scales.reshape(len(scales), -1), (rows, scales.size // len(scales)))
    if points is None:
        return grouped(codes, scales, None, bits, where)
    if points.dtype == np.int32:
        zeros = _unpacked(np.ascontiguousarray(points.T), bits).T[:rows]
    else:
        zeros = (points.astype(np.int16) + middle).astype(np.uint8).reshape(len(points), -1)
        zeros = np.broadcast_to(zeros, (rows, zeros.shape[1]))
    return grouped(codes, scales, zeros, bits, where)


def grouped(
    codes: NDArray[np.uint8], scales: NDArray[Any], zeros: NDArray[np.uint8] | None, bits: int, where: str
) -> QuantizedMatrix:
    """Make a matrix of codes (N, K), with scales and zero points (N, groups).

    Raises:
        UnsupportedQuantizationError: the groups can't be cut into blocks of 16 to 256 columns.
        SourceError: the parts don't fit together.
    """
    rows, columns = codes.shape
    groups = scales.shape[1]
    if len(scales) != rows or columns % groups or (zeros is not None and zeros.shape != scales.shape):
        raise SourceError(f"The parts of the matrix '{where}' don't fit together. Download the model again.")
    size = columns // groups
    block = min(size & -size, 256)
    if block < 16:
        raise UnsupportedQuantizationError(
            f"The matrix '{where}' has groups of {size} columns, which can't be cut into blocks of 16. Use `quantize` "
            "int8."
        )
    scales = np.ascontiguousarray(scales, np.float32)
    if not np.isfinite(scales).all():
        raise SourceError(f"The matrix '{where}' has a scale that is no number. Download the model again.")
    if zeros is not None:
        zeros = np.ascontiguousarray(np.repeat(zeros, size // block, axis=1))
    return QuantizedMatrix(bits, block, np.ascontiguousarray(codes), np.repeat(scales, size // block, axis=1), zeros)


def _unpacked(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unpack (rows, words) int32 to (rows, words * 32 / bits) uint8, lowest bits first."""
    wide = np.ascontiguousarray(words).view(np.uint32)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)
    found: NDArray[np.uint8] = (wide & np.uint32((1 << bits) - 1)).astype(np.uint8).reshape(len(words), -1)
    return found


def _needed(part: Part, name: str, where: str) -> NDArray[Any]:
    found = part(name)
    if found is None:
        raise SourceError(f"The matrix '{where}' lacks its part '{name}'. Download the model again.")
    return found
