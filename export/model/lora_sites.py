"""Where a decoder of the Llama family takes an adapter, the same for every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge_runtime.bundle.manifest import LoraSite

if TYPE_CHECKING:
    from export.model.architecture import Architecture

AdapterSites = Literal["qkv", "all"]
"""Which places take an adapter: queries, keys and values alone, or every projection."""


def lora_sites(architecture: Architecture, wanted: AdapterSites = "all") -> tuple[LoraSite, ...]:
    """The places of every layer that take an adapter, with the projections packed there."""
    a = architecture
    sites = (
        LoraSite("qkv", a.hidden, (("q_proj", a.query_width), ("k_proj", a.kv_width), ("v_proj", a.kv_width))),
        LoraSite("o", a.query_width, (("o_proj", a.hidden),)),
        LoraSite("gate_up", a.hidden, (("gate_proj", a.intermediate), ("up_proj", a.intermediate))),
        LoraSite("down", a.intermediate, (("down_proj", a.hidden),)),
    )
    return sites if wanted == "all" else sites[:1]
