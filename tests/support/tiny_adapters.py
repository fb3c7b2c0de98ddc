"""Random adapters of the tiny Llama, and files of them by the real exporter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_runtime.adapters.adapter import Adapter
from export.adapters.writer import AdapterWeights, encode_adapter

SHAPES = {  # projection: (in_features, out_features) of the tiny Llama
    "q_proj": (64, 64),
    "k_proj": (64, 32),
    "v_proj": (64, 32),
    "o_proj": (64, 64),
    "gate_proj": (64, 96),
    "up_proj": (64, 96),
    "down_proj": (96, 64),
}
PLACES = [(layer, name) for layer in (0, 1) for name in SHAPES]


def make_adapter(
    base: str, ranks: Mapping[tuple[int, str], int], seed: int = 0, dtype: Any = np.float32, user: str = "test"
) -> Adapter:
    """Random matrices: `ranks` gives the rank of every (layer, projection) that is touched."""
    rng = np.random.default_rng(seed)
    matrices = {
        (layer, name): (
            (rng.standard_normal((SHAPES[name][0], rank)) * 0.2).astype(dtype),
            (rng.standard_normal((rank, SHAPES[name][1])) * 0.2).astype(dtype),
        )
        for (layer, name), rank in ranks.items()
    }
    fingerprint = hashlib.sha256(repr((sorted(ranks.items()), seed, dtype, user)).encode()).hexdigest()
    return Adapter(base, fingerprint, matrices, "test", user, "tiny")


def adapter_file(base: str, user: str, seed: int = 0, rank: int = 4, weights: AdapterWeights = "fp16") -> bytes:
    """The file of a user's adapter on q and v of both layers."""
    places = [(layer, name) for layer in (0, 1) for name in ("q_proj", "v_proj")]
    return encode_adapter(make_adapter(base, dict.fromkeys(places, rank), seed, user=user), weights)
