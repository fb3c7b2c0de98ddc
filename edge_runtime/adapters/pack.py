"""Lays an adapter's matrices out as the graph takes them: packed where the graph packs projections side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import MAX_RANK, Adapter
from edge_runtime.bundle.manifest import LoraSite
from edge_runtime.errors import AdapterError


def pack_adapter(
    adapter: Adapter, *, base: str, layers: int, sites: Sequence[LoraSite]
) -> Mapping[str, NDArray[np.float32]]:
    """Make the graph's LoRA inputs out of an adapter.

    Where a site holds several projections (q, k and v are one matrix product in the graph), their A stand side by side
    and their B on the block diagonal, so that x A B is the concatenation of the single x A_p B_p.

    Args:
        adapter: one user's matrices.
        base: identity of the base model in use (`Bundle.base`).
        layers: how many layers the base has.
        sites: places of the base that take an adapter.

    Returns:
        `layers.{i}.{site}.lora_A` (in_features, r) and `.lora_B` (r, out_features), float32 and contiguous, for the
        sites that the adapter touches; r is the sum of its projections' ranks there. All lie in one piece of memory.

    Raises:
        AdapterError: another base, a projection that the base does not have, or a shape that does not fit.
    """
    if adapter.base != base:
        trained_on = f"{adapter.base_name}, {adapter.base[:12]}" if adapter.base_name else adapter.base[:12]
        raise AdapterError(
            f"The adapter '{adapter.name}' was trained on another base model ({trained_on}), this bundle is "
            f"{base[:12]}. Train it on this bundle's model, or use the bundle it was trained on."
        )
    if adapter.matrices and not sites:
        raise AdapterError("This bundle takes no adapters: its graph is the portable one. Export it for a Llama model.")
    offered = {projection for site in sites for projection, _ in site.projections}
    for layer, projection in adapter.matrices:
        if not 0 <= layer < layers or projection not in offered:
            raise AdapterError(
                f"The adapter '{adapter.name}' has no counterpart in the bundle: layer {layer}, {projection}."
            )
    shapes = _shapes(adapter, layers, sites)
    memory = np.zeros(sum(map(math.prod, shapes.values())), np.float32)
    packed: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name, shape in shapes.items():
        packed[name] = memory[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    for layer in range(layers):
        for site in sites:
            _fill(adapter, layer, site, packed)
    if not np.isfinite(memory).all():
        raise AdapterError(f"The adapter '{adapter.name}' holds numbers that are not finite. Train it again.")
    return packed


def _shapes(adapter: Adapter, layers: int, sites: Sequence[LoraSite]) -> dict[str, tuple[int, int]]:
    """Shapes of the packed matrices; each single one has been checked."""
    shapes = {}
    for layer in range(layers):
        for site in sites:
            rank = 0
            for projection, width in site.projections:
                pair = adapter.matrices.get((layer, projection))
                if pair is not None:
                    _check(adapter, layer, projection, pair, site.in_features, width)
                    rank += pair[0].shape[1]
            if rank > MAX_RANK:
                raise AdapterError(
                    f"The adapter '{adapter.name}' has rank {rank} at layer {layer}, {site.name}: too large."
                )
            if rank:
                shapes[_name(layer, site, "lora_A")] = (site.in_features, rank)
                shapes[_name(layer, site, "lora_B")] = (rank, sum(width for _, width in site.projections))
    return shapes


def _fill(adapter: Adapter, layer: int, site: LoraSite, packed: Mapping[str, NDArray[np.float32]]) -> None:
    a, b = packed.get(_name(layer, site, "lora_A")), packed.get(_name(layer, site, "lora_B"))
    if a is None or b is None:
        return
    row = column = 0
    for projection, width in site.projections:
        pair = adapter.matrices.get((layer, projection))
        if pair is not None:
            here = slice(row, row + pair[0].shape[1])
            a[:, here] = pair[0]
            b[here, column : column + width] = pair[1]
            row = here.stop
        column += width


def _name(layer: int, site: LoraSite, half: str) -> str:
    return f"layers.{layer}.{site.name}.{half}"


def _check(
    adapter: Adapter,
    layer: int,
    projection: str,
    pair: tuple[NDArray[np.floating], NDArray[np.floating]],
    in_features: int,
    out_features: int,
) -> None:
    a, b = pair
    if a.shape[0] != in_features or b.shape[1] != out_features or a.shape[1] != b.shape[0]:
        raise AdapterError(
            f"The adapter '{adapter.name}' does not fit: layer {layer}, {projection} has A {a.shape} and B {b.shape}, "
            f"the base wants ({in_features}, r) and (r, {out_features})."
        )
