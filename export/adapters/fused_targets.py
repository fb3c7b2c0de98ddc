"""Splits an adapter's matrices on fused projections (Phi-3) into those of the projections that a bundle names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.model.fused import FUSED

Halves: TypeAlias = dict[tuple[int, str], dict[str, NDArray[np.float32]]]
_Value = TypeVar("_Value")


def split_fused(halves: Halves, widths: Mapping[str, tuple[int, int]]) -> Halves:
    """Split the rows of B by projection; A is the same for all. Matrices of a wrong shape stay as they are.

    Args:
        halves: "lora_A" (r, in) and "lora_B" (out, r) by layer and projection.
        widths: (in, out) of the bundle's projections.
    """
    found: Halves = {}
    for (layer, name), pair in halves.items():
        parts = FUSED[name][1] if name in FUSED else ()
        sizes = [widths[part][1] for part in parts if part in widths]
        whole = pair.get("lora_B")
        if not parts or len(sizes) < len(parts) or whole is None or "lora_A" not in pair or len(whole) != sum(sizes):
            found[layer, name] = pair
            continue
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            found[layer, part] = {"lora_A": pair["lora_A"], "lora_B": whole[start : start + size]}
            start += size
    return found


def split_modules(modules: Mapping[tuple[int, str], _Value]) -> dict[tuple[int, str], _Value]:
    """Name the fused module's path for each of its projections too."""
    parts = {(layer, part): path for (layer, name), path in modules.items() for part in split_target(name)}
    return {**parts, **modules}


def split_target(name: str) -> tuple[str, ...]:
    """Return the projections of a fused module, or the name itself."""
    return FUSED[name][1] if name in FUSED else (name,)
