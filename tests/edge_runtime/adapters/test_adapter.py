"""An adapter changes the model exactly as adding B A to the weights would, and only where it belongs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import AdapterError
from tests.support.decoder_models import torch_rows
from tests.support.tiny_adapters import PLACES, make_adapter
from tests.support.tiny_models import random_ids

IDS = random_ids(40, seed=21)


def merged(tiny, adapter):
    """The oracle: torch with the adapter added to its weights."""
    model = tiny.torch()
    with torch.no_grad():
        for (layer, name), (a, b) in adapter.matrices.items():
            block = model.model.layers[layer]
            owner = block.self_attn if hasattr(block.self_attn, name) else block.mlp
            getattr(owner, name).weight += torch.from_numpy((a.astype(np.float64) @ b).T.astype(np.float32))
    return model


@pytest.fixture(scope="module")
def shared(tiny):
    return open_decoder(tiny.bundle, threads=1)


@pytest.fixture
def decoder(shared):
    shared.use_adapter(None)
    shared.rewind(0)
    return shared


@settings(max_examples=15, deadline=None)
@given(ranks=st.dictionaries(st.sampled_from(PLACES), st.integers(1, 9), min_size=1), seed=st.integers(1, 10**6))
def test_any_projections_with_any_ranks_act_like_merged_weights(ranks, seed, shared, tiny):
    adapter = make_adapter(tiny.bundle.base, ranks, seed)
    shared.use_adapter(None)
    shared.use_adapter(adapter)
    expected = torch_rows(merged(tiny, adapter), IDS)
    np.testing.assert_allclose(shared.extend(IDS, rows=len(IDS)), expected, atol=1e-3, rtol=1e-4)


def test_each_users_rank_is_their_own_and_without_an_adapter_the_base_is_back(decoder, tiny):
    bare = decoder.extend(IDS, rows=len(IDS))
    seen = [bare]
    for seed, rank in enumerate((1, 16, 4), start=1):
        adapter = make_adapter(tiny.bundle.base, dict.fromkeys(PLACES, rank), seed)
        decoder.use_adapter(adapter)
        rows = decoder.extend(IDS, rows=len(IDS))
        np.testing.assert_allclose(rows, torch_rows(merged(tiny, adapter), IDS), atol=2e-3, rtol=1e-3)
        assert all(np.abs(rows - other).max() > 0.1 for other in seen)
        seen.append(rows)
    decoder.use_adapter(None)
    np.testing.assert_array_equal(decoder.extend(IDS, rows=len(IDS)), bare)


def test_half_precision_adapters_are_widened(decoder, tiny):
    adapter = make_adapter(tiny.bundle.base, {(1, "v_proj"): 3}, dtype=np.float16)
    decoder.use_adapter(adapter)
    expected = torch_rows(merged(tiny, adapter), IDS)
    np.testing.assert_allclose(decoder.extend(IDS, rows=len(IDS)), expected, atol=5e-4, rtol=0)


def test_another_adapter_empties_the_cache_and_the_same_one_keeps_it(decoder, tiny):
    first = make_adapter(tiny.bundle.base, {(0, "q_proj"): 2}, seed=1)
    decoder.extend(IDS)
    decoder.use_adapter(first)
    assert decoder.length == 0
    decoder.extend(IDS)
    decoder.use_adapter(make_adapter(tiny.bundle.base, {(0, "q_proj"): 2}, seed=1))
    assert decoder.length == len(IDS)
    decoder.use_adapter(make_adapter(tiny.bundle.base, {(0, "q_proj"): 2}, seed=2))
    assert decoder.length == 0


def test_forks_start_with_the_adapter_and_change_it_alone(decoder, tiny):
    bare = decoder.extend(IDS)
    decoder.use_adapter(make_adapter(tiny.bundle.base, {(0, "up_proj"): 2}))
    adapted = decoder.extend(IDS)
    fork = decoder.fork()
    np.testing.assert_array_equal(fork.extend(IDS), adapted)
    fork.use_adapter(None)
    np.testing.assert_array_equal(fork.extend(IDS), bare)
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.extend(IDS), adapted)


def test_an_adapter_of_another_base_is_refused_and_nothing_changes(decoder, other_tiny):
    decoder.extend(IDS[:9])
    with pytest.raises(AdapterError, match="another base"):
        decoder.use_adapter(make_adapter(other_tiny.bundle.base, {(0, "q_proj"): 1}))
    assert decoder.length == 9


@pytest.mark.parametrize(
    ("place", "a", "b"),
    [
        ((0, "q_proj"), (63, 2), (2, 64)),
        ((0, "q_proj"), (64, 2), (2, 65)),
        ((0, "q_proj"), (64, 2), (3, 64)),
        ((0, "down_proj"), (64, 2), (2, 96)),
        ((2, "q_proj"), (64, 2), (2, 64)),
        ((-1, "q_proj"), (64, 2), (2, 64)),
        ((0, "lm_head"), (64, 2), (2, 384)),
        ((0, "q_proj"), (64, 5000), (5000, 64)),
    ],
)
def test_matrices_that_do_not_fit_are_refused_and_nothing_changes(decoder, tiny, place, a, b):
    decoder.extend(IDS[:9])
    bad = Adapter(tiny.bundle.base, "b" * 64, {place: (np.ones(a, np.float32), np.ones(b, np.float32))})
    with pytest.raises(AdapterError):
        decoder.use_adapter(bad)
    assert decoder.length == 9
    decoder.extend(IDS[9:12])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(decoder, tiny, value):
    a = np.full((64, 1), value, np.float32)
    with pytest.raises(AdapterError, match="not finite"):
        decoder.use_adapter(Adapter(tiny.bundle.base, "c" * 64, {(0, "q_proj"): (a, np.ones((1, 64)))}))


def test_swapping_users_does_not_repack_their_matrices(decoder, tiny):
    users = [make_adapter(tiny.bundle.base, dict.fromkeys(PLACES, 8), seed) for seed in (1, 2)]
    for user in users:
        decoder.use_adapter(user)
    packed = decoder._model.adapters.get(users[0])
    decoder.use_adapter(users[0])
    assert decoder._model.adapters.get(users[0]) is packed
