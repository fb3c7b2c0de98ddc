"""Refuses a GGUF file with blocks that can't be carried over, from its header alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType as Kind

from export.errors import UnsupportedQuantizationError
from export.model.gguf.blocks import EXACT
from export.model.gguf.parts import read_parts

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

DENSE = frozenset({Kind.F32, Kind.F16, Kind.BF16})


def refuse_what_can_not_be_kept(path: Path, carried: Collection[Kind] = EXACT, where: str = "") -> None:
    """Refuse a file with blocks that can't be carried over, before any weight is read.

    Args:
        path: a GGUF file.
        carried: the kinds of blocks that can.
        where: words for the runtime that can't, as in " for ExecuTorch".

    Raises:
        UnsupportedQuantizationError: a matrix is of another kind; the message names it.
        SourceError, UnsupportedModelError: see `read_parts`.
    """
    for tensor in read_parts(path).tensors:
        kind = tensor.tensor_type
        if kind not in DENSE and kind not in carried:
            raise UnsupportedQuantizationError(
                f"The tensor '{tensor.name}' is quantized as {kind.name}, which can't be carried over exactly{where}: "
                f"{path}. Use `quantize` int8."
            )
