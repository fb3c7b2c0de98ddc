"""Packed adapters: the last users' are kept, in bounded memory, whatever the number of users."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.packed_cache import PackedAdapters
from edge_runtime.bundle.manifest import DecoderSpec, LoraSite, Quantization

BASE = "b" * 64
WIDTH = 16
SPEC = DecoderSpec(
    "onnx/model.onnx",
    "shared_kv",
    1,
    1,
    8,
    (LoraSite("o", WIDTH, (("o_proj", WIDTH),)),),
    Quantization("fp32", ""),
    "golden.json",
)
SIZE_OF_RANK = 2 * WIDTH * 4


def adapter(user, rank):
    halves = (np.full((WIDTH, rank), user, np.float32), np.ones((rank, WIDTH), np.float32))
    return Adapter(BASE, f"{user}-{rank}", {(0, "o_proj"): halves})


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=60), st.integers(1, 40))
def test_memory_is_bounded_and_every_answer_is_right_whoever_is_asked_for(asked, ranks):
    packed = PackedAdapters(BASE, SPEC, lambda matrix: matrix, limit=ranks * SIZE_OF_RANK)
    for user, rank in asked:
        found = packed.get(adapter(user, rank))
        assert (found["layers.0.o.lora_A"] == user).all()
        assert found["layers.0.o.lora_A"].shape == (WIDTH, rank)
        assert packed.nbytes <= max(ranks, rank) * SIZE_OF_RANK


def test_those_used_last_are_kept_as_they_are():
    packed = PackedAdapters(BASE, SPEC, lambda matrix: matrix, limit=2 * SIZE_OF_RANK)
    first, second, third = (adapter(user, 1) for user in range(3))
    kept, gone = packed.get(first), packed.get(second)
    assert packed.get(first) is kept
    packed.get(third)
    assert packed.get(first) is kept
    assert packed.get(second) is not gone
