"""Says from a Hugging Face `quantization_config` how a checkpoint's matrices are packed, and reads them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import UnsupportedModelError
from export.model.packed.floats import bitsandbytes_4bit, bitsandbytes_int8, fp8
from export.model.packed.integers import awq, compressed, gptq
from export.model.quantized_matrix import QuantizedMatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from export.model.quantized_matrix import Matrix

    Part = Callable[[str], "NDArray[Any] | None"]

_PARTS = re.compile(
    r"(.+)\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|weight_shape|"
    r"weight_g_idx|SCB|weight_format|weight\.absmax|weight\.quant_map|weight\.nested_absmax|weight\.nested_quant_map|"
    r"weight\.quant_state\.bitsandbytes__\w+|input_scale|weight)\Z"
)
_MAIN = ("qweight", "weight_packed", "weight")


@dataclass(frozen=True)
class PackedCheckpoint:
    """How the matrices of a checkpoint are packed.

    Attributes:
        description: in words, as in "GPTQ, 4 bits, groups of 128".
        bits: of a weight.
        exact: whether a bundle can keep the matrices; otherwise they are dequantized.
        read: reads a packed matrix from its parts; `(part, where)`.
    """

    description: str
    bits: int
    exact: bool
    read: Callable[[Part, str], Matrix]

    def weights_per_element(self, kind: str) -> int:
        """Return how many weights an element of the main part holds, by its type in safetensors."""
        return {"I32": 32 // self.bits, "U8": 8 // self.bits}.get(kind, 1)

    @staticmethod
    def weight_name(stored: str) -> str | None:
        """Return the name of the weight whose main part this is; None for the other parts of a packed matrix."""
        found = _PARTS.match(stored)
        if found is None:
            return stored
        return f"{found[1]}.weight" if found[2] in _MAIN else None


FIELDS = ("quantization_config", "compression_config")
"""Fields of a model's configuration that say how its matrices are packed."""


def packed_checkpoint(config: Mapping[str, Any], where: str) -> PackedCheckpoint | None:
    """Read the field `quantization_config` of a model's configuration; None if there is none.

    Raises:
        UnsupportedModelError: the format, or a setting of it, is not supported; the message names it.
    """
    settings = next((config[name] for name in FIELDS if config.get(name)), None)
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise UnsupportedModelError(f"The field quantization_config is no object: {where}. Download the model again.")
    method = str(settings.get("quant_method", "none given"))
    reader = _FORMATS.get(method)
    if reader is None:
        raise _refused(f"quantized by '{method}'; supported are {', '.join(sorted(_FORMATS))}", where)
    return reader(settings, where)


def directory_packing(path: Path) -> PackedCheckpoint | None:
    """Return how a model directory is packed, from its configuration alone.

    Raises:
        UnsupportedModelError: see `packed_checkpoint`.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # reported when the directory is opened
    return packed_checkpoint(config, str(path / "config.json")) if isinstance(config, dict) else None


def _gptq(settings: Mapping[str, Any], where: str) -> PackedCheckpoint:
    bits, size = settings.get("bits"), settings.get("group_size", -1)
    form = settings.get("checkpoint_format") or "gptq"
    if bits not in (2, 4, 8):
        raise _refused(f"quantized by GPTQ to {bits} bits; supported are 2, 4 and 8", where)
    if form not in ("gptq", "gptq_v2"):
        raise _refused(f"in GPTQ's checkpoint format '{form}'; supported are gptq and gptq_v2", where)
    mixed = settings.get("dynamic")
    if mixed:
        raise _refused("quantized by GPTQ with other settings for some layers (dynamic)", where)
    ordered = not settings.get("desc_act") or size == -1

    def read(part: Part, name: str) -> Matrix:
        matrix, weights = gptq(part, int(bits), form == "gptq_v2", name)
        return weights if matrix is None or not ordered else matrix

    order = "" if ordered else ", columns in act-order"
    return PackedCheckpoint(f"GPTQ, {bits} bits, {_groups(size)}{order}", int(bits), ordered, read)


def _awq(settings: Mapping[str, Any], where: str) -> PackedCheckpoint:
    bits, version = settings.get("bits", settings.get("w_bit")), str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise _refused(f"quantized by AWQ to {bits} bits in version '{version}'; supported is 4 bits, gemm", where)
    size = settings.get("group_size", settings.get("q_group_size", 128))
    return PackedCheckpoint(f"AWQ, 4 bits, {_groups(size)}", 4, True, awq)


def _compressed(settings: Mapping[str, Any], where: str) -> PackedCheckpoint:
    form = settings.get("format")
    groups = list((settings.get("config_groups") or {}).values())
    weights = [group.get("weights") or {} for group in groups]
    if len(weights) != 1:
        raise _refused(f"quantized by compressed-tensors in {len(weights)} groups of layers; supported is 1", where)
    [own] = weights
    kind, bits, strategy = own.get("type"), own.get("num_bits"), own.get("strategy")
    if (settings.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise _refused("sparse (sparsity_config)", where)
    if own.get("actorder") not in (None, False, "static", "weight"):
        raise _refused(f"quantized by compressed-tensors with actorder '{own['actorder']}'", where)
    if form == "float-quantized" and kind == "float" and bits == 8 and strategy in ("channel", "tensor"):
        return PackedCheckpoint("compressed-tensors, 8-bit floats", 8, False, lambda part, name: fp8(part, None, name))
    packed = form == "pack-quantized" and bits in (4, 8) and strategy in ("group", "channel")
    plain = form in ("int-quantized", "naive-quantized") and bits == 8 and strategy in ("channel", "tensor")
    if kind != "int" or not (packed or plain):
        raise _refused(
            f"quantized by compressed-tensors as '{form}' ({kind}, {bits} bits, {strategy}); supported are "
            "pack-quantized with 4 or 8 bits, int-quantized and float-quantized with 8",
            where,
        )
    size = own.get("group_size") if strategy == "group" else -1
    return PackedCheckpoint(
        f"compressed-tensors, {bits} bits, {_groups(size)}",
        int(bits or 0),
        True,
        lambda part, name: compressed(part, int(bits or 0), name),
    )


def _bitsandbytes(settings: Mapping[str, Any], where: str) -> PackedCheckpoint:
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        return PackedCheckpoint(f"bitsandbytes, {kind}", 4, False, bitsandbytes_4bit)
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return PackedCheckpoint("bitsandbytes, int8", 8, False, bitsandbytes_int8)
    raise _refused("quantized by bitsandbytes, neither to 4 nor to 8 bits", where)


def _fp8(settings: Mapping[str, Any], where: str) -> PackedCheckpoint:
    size = settings.get("weight_block_size")
    if settings.get("fmt", "e4m3") != "e4m3" or (size is not None and len(size) != 2):
        raise _refused(f"stored as 8-bit floats of form '{settings.get('fmt')}', blocks {size}", where)
    block = None if size is None else (int(size[0]), int(size[1]))
    return PackedCheckpoint("8-bit floats", 8, False, lambda part, name: fp8(part, block, name))


_FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], PackedCheckpoint]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
}


def _groups(size: Any) -> str:
    return "one group per row" if size in (None, -1) else f"groups of {size}"


def _refused(reason: str, where: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"This model can't be exported, it is {reason}: {where}. Use the original model.")


def dense(matrix: Matrix) -> NDArray[np.float32]:
    """Return a matrix's weights."""
    return matrix.dequantize() if isinstance(matrix, QuantizedMatrix) else matrix
