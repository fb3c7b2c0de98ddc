"""Which layers go, and how those that stay are fitted: against transformers' own states and numpy's least squares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.model.hf_source import HFSource
from export.model.layers import LayerStack
from export.progress import silent
from personalization.collab.shrink.layer_pruning import (
    block_influences,
    layers_for_share,
    most_useful,
    refitted_projections,
)
from personalization.errors import SettingsError
from personalization.models.precision import Precision
from tests.support.personal_data import torch_model
from tests.support.tiny_models import VOCABULARY, make_model

EXACT = Precision.FLOAT32
WINDOWS = np.random.default_rng(0).integers(2, VOCABULARY, (9, 32))


@pytest.fixture(scope="module", params=["llama", "gemma"])
def deep(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("deep") / request.param
    return make_model(directory, model_type=request.param, num_hidden_layers=4, head_dim=16)


@pytest.fixture(scope="module")
def states(deep):
    """What enters each layer, and what leaves the last: by transformers."""
    model = torch_model(deep)
    last = []
    model.model.norm.register_forward_pre_hook(lambda _module, inputs: last.append(inputs[0]))
    with torch.no_grad():
        found = model(torch.from_numpy(WINDOWS), output_hidden_states=True).hidden_states
    return [*found[:-1], last[0]]


def test_a_layers_influence_is_how_far_it_turns_states(deep, states):
    expected = [
        1 - float(torch.nn.functional.cosine_similarity(before, after, dim=-1).mean())
        for before, after in pairwise(states)
    ]
    stack = LayerStack(HFSource(deep))
    assert block_influences(stack, WINDOWS, EXACT, silent) == pytest.approx(expected, abs=1e-5)
    assert block_influences(stack, WINDOWS, Precision.BFLOAT16, silent) == pytest.approx(expected, abs=0.02)


def test_the_last_matrix_is_fitted_by_least_squares_to_the_states_behind_the_gap(deep, states):
    """The first layer stays, the two behind it go: numpy solves the same problem with the ridge as further rows."""
    matrices = refitted_projections(LayerStack(HFSource(deep)), [0, 3], WINDOWS, EXACT, silent)
    layer = torch_model(deep).model.layers[0]
    inner = []
    layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: inner.append(inputs[0]))
    positions = torch.arange(32)[None]
    rotary = torch_model(deep).model.rotary_emb(states[0], positions)
    with torch.no_grad():
        layer(states[0], position_embeddings=rotary, attention_mask=None)
    size = states[3].square().mean(-1, keepdim=True).sqrt()
    rows = (inner[0] / size).flatten(0, 1).double().numpy()
    missing = ((states[3] - states[1]) / size).flatten(0, 1).double().numpy()
    ridge = np.sqrt(0.1 * np.square(rows).sum(0).mean())
    change = np.linalg.lstsq(
        np.vstack([rows, ridge * np.eye(rows.shape[1])]),
        np.vstack([missing, np.zeros((rows.shape[1], missing.shape[1]))]),
        rcond=None,
    )[0]
    expected = layer.mlp.down_proj.weight.detach().numpy() + change.T
    np.testing.assert_allclose(matrices[0].numpy(), expected, atol=2e-4)


def test_where_no_layer_is_gone_nothing_is_fitted(deep):
    own = [layer.mlp.down_proj.weight for layer in torch_model(deep).model.layers]
    found = refitted_projections(LayerStack(HFSource(deep)), range(4), WINDOWS, EXACT, silent)
    for matrix, weight in zip(found, own, strict=True):
        torch.testing.assert_close(matrix, weight.detach(), atol=1e-5, rtol=0)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=2, max_size=9), st.data())
def test_the_layers_of_the_highest_influence_stay_in_their_order(influences, data):
    count = data.draw(st.integers(1, len(influences)))
    kept = most_useful(influences, count)
    gone = [influence for index, influence in enumerate(influences) if index not in kept]
    assert len(kept) == count
    assert list(kept) == sorted(set(kept))
    assert not gone or max(gone) <= min(influences[index] for index in kept)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(2, 40), st.floats(0.01, 1))
def test_as_many_layers_stay_as_the_share_leaves_room_for(rest, of_layer, layers, share):
    whole = rest + layers * of_layer
    try:
        count = layers_for_share(whole, of_layer, layers, share)
    except SettingsError:
        assert share * whole < rest + of_layer or share * whole >= whole
        return
    assert rest + count * of_layer <= share * whole < rest + (count + 1) * of_layer
