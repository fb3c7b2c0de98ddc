"""Attention over caches that belong to the caller: the one operation of the model form that torch can't express.

ExecuTorch's `llama::sdpa_with_kv_cache` writes new keys and values into the caches and attends to all that is there.
Declared as it is, torch.export would make the program functional: every step would copy all caches, twice. So the
model calls a twin that claims to change nothing, and the finished program gets the real kernel in its place.
"""

from __future__ import annotations

import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  # registers the kernel
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn import functional

# The kernel's own signature but for the marks of what it changes.
_LIBRARY = torch.library.Library("cogenesis", "DEF")
_LIBRARY.define(
    "cached_attention(Tensor query, Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, SymInt start, "
    "SymInt count, Tensor? mask=None, float dropout=0.0, bool causal=False, float? scale=None) -> Tensor"
)


def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    start: int | torch.SymInt,
) -> torch.Tensor:
    """Write keys and values at `start`, and attend causally to everything up to each query.

    Args:
        query: (1, S, heads, head_dim) float32.
        key: (1, S, kv_heads, head_dim) float32.
        value: the same shape.
        key_cache: (1, capacity, kv_heads, head_dim) float32, changed in place.
        value_cache: the same shape.
        start: tokens that are there already; start + S must not pass the capacity.

    Returns:
        (1, S, heads, head_dim) float32.
    """
    result: torch.Tensor = torch.ops.cogenesis.cached_attention(
        query, key, value, key_cache, value_cache, start, query.shape[1], None, 0.0, True
    )
    return result


class UseKernel(PassBase):  # type: ignore[misc]  # torch has no types here
    """Puts the kernel where the program calls its twin."""

    def call(self, graph_module: torch.fx.GraphModule) -> PassResult:
        """Change the graph; see `torch.fx.passes.infra.pass_base`."""
        twin = torch.ops.cogenesis.cached_attention.default
        # Programs in ExecuTorch's edge dialect wrap operations, and name the wrapped one `_op`.
        found = [node for node in graph_module.graph.nodes if getattr(node.target, "_op", node.target) is twin]
        for node in found:
            node.target = torch.ops.llama.sdpa_with_kv_cache.default
        graph_module.recompile()
        return PassResult(graph_module, bool(found))


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    start: int,
    count: int,
    *_: object,
) -> torch.Tensor:
    """What the kernel computes, by torch: so that a program can be tried against something else than itself."""
    end = start + count
    key_cache[:, start:end] = key
    value_cache[:, start:end] = value
    mask = torch.ones(count, end, dtype=torch.bool).tril(start)
    query, keys, values = (part.transpose(1, 2) for part in (query, key_cache[:, :end], value_cache[:, :end]))
    attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
    return attended.transpose(1, 2).contiguous()


def _shape(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


_LIBRARY.impl("cached_attention", _attend, "CPU")
torch.library.register_fake("cogenesis::cached_attention", _shape, lib=_LIBRARY)
