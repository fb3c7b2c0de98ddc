"""Finds projections inside the matrices that some families store together (Phi-3: q, k and v; gate and up)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from export.model.architecture import Architecture

_PART = re.compile(r"(model\.layers\.\d+\.)(self_attn|mlp)\.(\w+)\.(weight|bias)\Z")
FUSED = {
    "qkv_proj": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "gate_up_proj": ("mlp", ("gate_proj", "up_proj")),
}


def fused_widths(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the rows of each projection in a fused matrix."""
    return {"qkv_proj": (a.query_width, a.kv_width, a.kv_width), "gate_up_proj": (a.intermediate, a.intermediate)}


def split_names(names: Iterable[str]) -> Iterator[str]:
    """Replace the names of fused matrices by those of their projections."""
    for name in names:
        match = _PART.match(name)
        fused = FUSED.get(match[3]) if match else None
        if match is None or fused is None or fused[0] != match[2]:
            yield name
        else:
            yield from (f"{match[1]}{match[2]}.{part}.{match[4]}" for part in fused[1])


def whole_of(name: str, a: Architecture) -> tuple[str, slice] | None:
    """Return the fused matrix that would hold a projection, and the projection's rows; None for other tensors."""
    match = _PART.match(name)
    if match is None:
        return None
    for fused, (block, parts) in FUSED.items():
        if match[2] == block and match[3] in parts:
            index, widths = parts.index(match[3]), fused_widths(a)[fused]
            start = sum(widths[:index])
            return f"{match[1]}{block}.{fused}.{match[4]}", slice(start, start + widths[index])
    return None
