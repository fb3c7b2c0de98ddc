"""Dequantizes matrices that bitsandbytes or an 8-bit floating-point format stored, as their own libraries do.

No graph of ours has these forms, so such a model is exported in another form.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import SourceError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Part = Callable[[str], "NDArray[Any] | None"]


def bitsandbytes_int8(part: Part, where: str) -> NDArray[np.float32]:
    """Dequantize LLM.int8() (Dettmers et al., NeurIPS 2022): codes (N, K) int8 times SCB (N,) / 127."""
    codes, largest = _needed(part, "weight", where), _needed(part, "SCB", where)
    return codes.astype(np.float32) * (largest.astype(np.float32) * np.float32(1 / 127))[:, None]


def bitsandbytes_4bit(part: Part, where: str) -> NDArray[np.float32]:
    """Dequantize NF4 or FP4 (Dettmers et al., NeurIPS 2023): a table's levels times each block's largest magnitude.

    The magnitudes may be quantized themselves ("double quantization"), to 8 bits of another table.
    """
    state: dict[str, Any] | None = None
    for kind in ("nf4", "fp4"):
        raw = part(f"weight.quant_state.bitsandbytes__{kind}")
        if raw is not None:
            state = json.loads(raw.astype(np.uint8).tobytes())
    if state is None:
        raise SourceError(f"The matrix '{where}' lacks its quantization state. Download the model again.")
    packed = _needed(part, "weight", where).reshape(-1)
    levels = _needed(part, "weight.quant_map", where).astype(np.float32)
    largest = _needed(part, "weight.absmax", where)
    if part("weight.nested_absmax") is not None:
        inner = _needed(part, "weight.nested_absmax", where).astype(np.float32)
        table = _needed(part, "weight.nested_quant_map", where).astype(np.float32)
        spread = np.repeat(inner, int(state["nested_blocksize"]))[: len(largest)]
        largest = table[largest] * spread + np.float32(state["nested_offset"])
    # The first of two weights is in the high half of a byte.
    indices = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    shape = tuple(int(size) for size in state["shape"])
    count = int(np.prod(shape))
    spread = np.repeat(largest.astype(np.float32), int(state["blocksize"]))[:count]
    weights: NDArray[np.float32] = levels[indices[:count]] * spread
    return weights.reshape(shape)


def fp8(part: Part, block: tuple[int, int] | None, where: str) -> NDArray[np.float32]:
    """Dequantize 8-bit floats: `weight` (N, K) times `weight_scale_inv` of each block, or `weight_scale` of each row.

    Args:
        part: returns the parts as float32.
        block: rows and columns that share a scale, or None for one scale per row or matrix.
        where: the matrix, for error messages.
    """
    weights = _needed(part, "weight", where).astype(np.float32)
    scales = part("weight_scale_inv")
    scales = _needed(part, "weight_scale", where) if scales is None else scales
    scales = scales.astype(np.float32)
    if block is not None:
        rows, columns = weights.shape
        if scales.shape != (-(-rows // block[0]), -(-columns // block[1])):
            raise SourceError(f"The scales of the matrix '{where}' don't fit it. Download the model again.")
        wide = np.repeat(np.repeat(scales, block[0], axis=0), block[1], axis=1)[:rows, :columns]
        blocks: NDArray[np.float32] = weights * wide
        return blocks
    if scales.size not in (1, len(weights)):
        raise UnsupportedModelError(f"The matrix '{where}' has scales of a form that can't be read: {scales.shape}.")
    scaled: NDArray[np.float32] = weights * scales.reshape(-1, 1)
    return scaled


def _needed(part: Part, name: str, where: str) -> NDArray[Any]:
    found = part(name)
    if found is None:
        raise SourceError(f"The matrix '{where}' lacks its part '{name}'. Download the model again.")
    return found
