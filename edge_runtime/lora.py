"""Lays an adapter's matrices out as the graph takes them: packed where the graph packs projections side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapter import Adapter
from edge_runtime.errors import AdapterError
from edge_runtime.manifest import LoraSite

MAX_RANK = 1024


def pack_adapter(
    adapter: Adapter, *, base: str, layers: int, sites: Sequence[LoraSite]
) -> Mapping[str, NDArray[np.float32]]:
    """Make the graph's LoRA inputs out of an adapter.

    Where a site holds several projections (q, k and v are one matrix product in the graph), their A stand side by side
    and their B on the block diagonal, so that x A B is the concatenation of the single x A_p B_p.

    Args:
        adapter: one user's matrices.
        base: fingerprint of the base model in use.
        layers: how many layers the base has.
        sites: places of the base that take an adapter.

    Returns:
        `layers.{i}.{site}.lora_A` (in_features, r) and `.lora_B` (r, out_features), float32 and contiguous, for the
        sites that the adapter touches; r is the sum of its projections' ranks there.

    Raises:
        AdapterError: another base, a projection that the base does not have, or a shape that does not fit.
    """
    if adapter.base != base:
        raise AdapterError(
            f"The adapter '{adapter.name}' was trained on another base model ({adapter.base[:12]}), this bundle is "
            f"{base[:12]}. Train it on this bundle, or use the bundle it was trained on."
        )
    if adapter.matrices and not sites:
        raise AdapterError("This bundle takes no adapters: its graph is the portable one. Export it for a Llama model.")
    offered = {projection for site in sites for projection, _ in site.projections}
    for layer, projection in adapter.matrices:
        if not 0 <= layer < layers or projection not in offered:
            raise AdapterError(
                f"The adapter '{adapter.name}' has no counterpart in the bundle: layer {layer}, {projection}."
            )
    packed: dict[str, NDArray[np.float32]] = {}
    for layer in range(layers):
        for site in sites:
            _pack_site(adapter, layer, site, packed)
    return packed


def _pack_site(adapter: Adapter, layer: int, site: LoraSite, packed: dict[str, NDArray[np.float32]]) -> None:
    present = [adapter.matrices.get((layer, projection)) for projection, _ in site.projections]
    rank = sum(pair[0].shape[1] for pair in present if pair is not None)
    if rank == 0:
        return
    if rank > MAX_RANK:
        raise AdapterError(f"The adapter '{adapter.name}' has rank {rank} at layer {layer}, {site.name}: too large.")
    a = np.empty((site.in_features, rank), np.float32)
    b = np.zeros((rank, sum(width for _, width in site.projections)), np.float32)
    row = column = 0
    for (projection, width), pair in zip(site.projections, present, strict=True):
        if pair is not None:
            _check(adapter, layer, projection, pair, site.in_features, width)
            here = slice(row, row + pair[0].shape[1])
            a[:, here] = pair[0]
            b[here, column : column + width] = pair[1]
            row = here.stop
        column += width
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AdapterError(
            f"The adapter '{adapter.name}' holds numbers that are not finite: layer {layer}, {site.name}."
        )
    packed[f"layers.{layer}.{site.name}.lora_A"] = a
    packed[f"layers.{layer}.{site.name}.lora_B"] = b


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
