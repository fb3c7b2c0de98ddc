"""What retrievers learn by: against numeric gradients, scipy, and the expected gain written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax

from personalization.models.text_encoder import Encoder
from personalization.retrievers.losses import distillation_loss, reinforce_loss
from tests.support.tiny_encoders import make_encoder, topic_question

NUMBERS = st.lists(st.floats(-4, 4), min_size=8, max_size=8)


def tensor(values: list[float], *, learnt: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=learnt)


@given(NUMBERS, NUMBERS, st.floats(0.1, 5))
def test_distillation_is_the_divergence_from_the_feedback_plus_its_entropy(scores, gains, temperature):
    loss = float(distillation_loss(tensor(scores), tensor(gains), temperature))

    target = softmax(np.array(gains) / temperature)
    divergence = rel_entr(target, softmax(np.array(scores) / temperature)).sum()
    entropy = -(target * log_softmax(np.array(gains) / temperature)).sum()
    assert loss == pytest.approx(divergence + entropy, abs=1e-9)


@given(NUMBERS, NUMBERS, st.floats(0.1, 5))
def test_distillation_has_the_gradient_that_differences_give(scores, gains, temperature):
    assert torch.autograd.gradcheck(
        lambda learnt: distillation_loss(learnt, tensor(gains), temperature), tensor(scores, learnt=True)
    )


@given(NUMBERS.filter(lambda scores: len(set(scores)) == len(scores)), NUMBERS)
def test_reinforcing_what_is_drawn_raises_on_average_the_expected_gain(scores, gains):
    """Over all draws, each as often as it comes, the gradients sum to that of sum p(i) gain(i)."""
    learnt = tensor(scores, learnt=True)
    odds = torch.softmax(learnt.detach(), dim=0)
    sum(odds[i] * reinforce_loss(learnt, tensor(gains), i) for i in range(len(scores))).backward()

    step = 1e-6
    for index in range(len(scores)):
        raised, lowered = (
            float(softmax(np.array(scores) + sign * step * np.eye(len(scores))[index]) @ np.array(gains))
            for sign in (1, -1)
        )
        assert -float(learnt.grad[index]) == pytest.approx((raised - lowered) / (2 * step), abs=1e-6)


def test_a_draw_that_is_worth_what_the_first_is_worth_changes_nothing():
    scores = tensor([1.0, 3.0, 2.0], learnt=True)
    reinforce_loss(scores, tensor([0.2, 0.7, 0.7]), 2).backward()
    assert scores.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["kd", "rl"])
def test_gradients_reach_the_encoders_weights_as_differences_say(tmp_path: Path, method: str):
    encoder = Encoder.load(make_encoder(tmp_path / "encoder"))
    encoder.pooling.double()
    example = topic_question("any")
    gains = tensor(list(example.gains))

    def loss() -> torch.Tensor:
        vectors = encoder.vectors((example.query, *example.documents))
        scores = vectors[1:] @ vectors[0]
        if method == "kd":
            return distillation_loss(scores, gains, 0.5)
        return reinforce_loss(scores, gains, int(gains.argmax()))

    loss().backward()
    draw = np.random.default_rng(0)
    checked = 0
    for parameter in encoder.pooling.parameters():
        for index in draw.integers(0, parameter.numel(), 3):
            flat, step = parameter.data.view(-1), 1e-6
            value = float(flat[index])
            around = []
            for changed in (value + step, value - step):
                flat[index] = changed
                with torch.no_grad():
                    around.append(float(loss()))
            flat[index] = value
            numeric = (around[0] - around[1]) / (2 * step)
            assert float(parameter.grad.view(-1)[index]) == pytest.approx(numeric, rel=1e-4, abs=1e-7)
            checked += abs(numeric) > 1e-6
    assert checked > 10
