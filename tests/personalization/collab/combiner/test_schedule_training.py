"""Training the learned schedule: it finds what many probes say together, and becomes what a device computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from edge_runtime.fusion.edge_features import PROBES, SCHEDULE_FEATURES
from personalization.collab.combiner.net import CombinerNet, mean_of, principal_directions
from personalization.collab.combiner.schedule_training import train_schedule
from personalization.collab.combiner.settings import CombinerSettings


def states(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose probes are logits of a hidden state of 12 dimensions; its third tells the worth, noisily."""
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((rows, 12))
    heads = np.random.default_rng(99).standard_normal((12, PROBES))
    alone = rng.standard_normal((rows, SCHEDULE_FEATURES - PROBES))
    worth = 0.4 + 0.3 * np.tanh(2 * state[:, 2]) + rng.normal(0, 0.1, rows)
    features = np.concatenate([alone, state @ heads - 12.0], 1)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(worth, dtype=torch.float32)


def test_the_schedule_reads_the_models_state_from_its_probes_and_keeps_to_its_calls():
    (training, known), (judging, judged), (other, truth) = (states(seed, 3000) for seed in range(3))
    found = train_schedule((training, judging), (known, judged), CombinerSettings(members=2, calls=0.4))
    predicted = found.out(np.tanh(found.hidden(other.double().numpy())))[:, 0]
    assert np.corrcoef(predicted, truth)[0, 1] > 0.8
    assert abs(found.asked - 0.4) < 0.01
    assert abs(float((predicted >= found.threshold).mean()) - 0.4) < 0.05


def test_principal_directions_are_those_of_scikit_learn():
    inputs = torch.randn(200, 9, generator=torch.Generator().manual_seed(0)) @ torch.randn(9, 9)
    standard = ((inputs - inputs.mean(0)) / inputs.std(0)).double()
    expected = PCA(4, whiten=True).fit_transform(standard.numpy())
    found = (standard.float() @ principal_directions(inputs, 4)).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)


@pytest.mark.parametrize("rows", [3, 40])
def test_there_are_no_more_directions_than_the_rows_have(rows: int):
    inputs = torch.randn(rows, 20, generator=torch.Generator().manual_seed(1))
    inputs[:, 5] = 1.0
    directions = principal_directions(inputs, 64)
    assert directions.shape == (20, min(rows - 1, 19))
    assert bool(torch.isfinite(directions).all())


def test_the_mean_of_networks_is_one_wider_network():
    torch.manual_seed(2)
    inputs = torch.randn(50, 11) * 3 + 1
    directions = principal_directions(inputs, 5)
    nets = [CombinerNet(inputs, 4, torch.zeros(3), directions, 0.5).eval() for _ in range(3)]
    for net in nets:
        torch.nn.init.normal_(net.out.weight)
    with torch.no_grad():
        expected = torch.stack([net(inputs) for net in nets]).mean(0).numpy()
    hidden, out = mean_of(nets)
    assert hidden.bias.shape == (12,)
    np.testing.assert_allclose(out(np.tanh(hidden(inputs.double().numpy()))), expected, atol=1e-5)
