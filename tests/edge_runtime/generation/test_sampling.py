"""Sampling: filters as in transformers, exact distribution, noise that depends only on its arguments."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from edge_runtime.errors import RequestError
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.generation.sampling import Sampling, candidates, choose, gumbel
from tests.support.examples import examples


def row(seed: int, vocabulary: int, spread: float = 3.0) -> np.ndarray:
    return log_softmax((np.random.default_rng(seed).standard_normal(vocabulary) * spread).astype(np.float32))


@given(st.integers(0, 2**32), st.integers(2, 3000), st.floats(0.1, 6.0), st.integers(0, 2**40), st.integers(0, 5000))
@settings(max_examples=examples(60), deadline=None)
def test_temperature_zero_takes_the_likeliest_whatever_the_filters(seed, vocabulary, spread, noise_seed, position):
    log_probs = row(seed, vocabulary, spread)
    greedy = Sampling(0.0, top_k=3, top_p=0.5, min_p=0.1, seed=noise_seed)
    assert choose(log_probs, position, greedy) == int(log_probs.argmax())


@given(
    st.integers(0, 2**32),
    st.integers(2, 800),
    st.floats(0.3, 3.0),
    st.integers(0, 900),
    st.one_of(st.just(1.0), st.floats(0.05, 0.999)),
    st.one_of(st.just(0.0), st.floats(0.001, 0.9)),
)
@settings(max_examples=examples(150), deadline=None)
def test_filters_keep_the_tokens_that_transformers_keeps(seed, vocabulary, temperature, top_k, top_p, min_p):
    scaled = row(seed, vocabulary) / np.float32(temperature)
    scores = torch.tensor(scaled)[None]
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p > 0.0:
        scores = MinPLogitsWarper(min_p)(None, scores)
    expected = set(np.flatnonzero(np.isfinite(scores[0].numpy())).tolist())
    kept = set(candidates(scaled, Sampling(temperature, top_k, top_p, min_p)).tolist())
    # A token at the edge of a float32 sum may fall on either side.
    assert len(expected ^ kept) <= 1
    assert int(scaled.argmax()) in kept


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.7), Sampling(1.3, top_k=6), Sampling(0.9, top_p=0.8), Sampling(1.0, min_p=0.1)],
    ids=str,
)
def test_choices_follow_the_filtered_distribution(sampling):
    log_probs = row(11, 12, 1.0)
    scaled = log_probs / np.float32(sampling.temperature)
    kept = candidates(scaled, sampling)
    expected = np.exp(log_softmax(scaled[kept]).astype(np.float64))
    n = 20_000
    drawn = np.array([choose(log_probs, position, sampling) for position in range(n)])
    counts = np.array([(drawn == token).sum() for token in kept])
    assert counts.sum() == n
    assert stats.chisquare(counts, expected / expected.sum() * n).pvalue > 1e-4


@given(st.integers(0, 2**32), st.integers(2, 500), st.integers(0, 2**63), st.integers(0, 10**6), st.floats(0.1, 5.0))
@settings(max_examples=examples(100), deadline=None)
def test_a_choice_is_the_argmax_of_score_plus_noise(seed, vocabulary, noise_seed, position, temperature):
    log_probs = row(seed, vocabulary)
    scaled = log_probs / np.float32(temperature)
    scores = scaled.astype(np.float64) + gumbel(noise_seed, position, np.arange(vocabulary))
    assert choose(log_probs, position, Sampling(temperature, seed=noise_seed)) == int(scores.argmax())


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32), st.lists(st.integers(0, 200_000), min_size=1, unique=True))
@settings(max_examples=examples(100), deadline=None)
def test_noise_of_a_token_does_not_depend_on_the_others(seed, position, tokens):
    together = gumbel(seed, position, np.array(tokens))
    alone = np.concatenate([gumbel(seed, position, np.array([token])) for token in tokens])
    assert np.array_equal(together, alone)
    assert np.isfinite(together).all()


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_noise_is_standard_gumbel_over_tokens_and_over_positions(seed):
    over_tokens = gumbel(seed, 5, np.arange(50_000))
    over_positions = np.concatenate([gumbel(seed, position, np.array([17])) for position in range(5_000)])
    assert stats.kstest(over_tokens, stats.gumbel_r.cdf).pvalue > 1e-4
    assert stats.kstest(over_positions, stats.gumbel_r.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(over_tokens, gumbel(seed, 6, np.arange(50_000)))[0, 1]) < 0.02


def test_noise_is_fixed_for_ever():
    # Ports to other languages must give these values; a change here changes every sampled answer.
    bits = _splitmix_noise(7, 3, 42)
    assert gumbel(7, 3, np.array([42]))[0] == pytest.approx(bits, rel=1e-12)


def _splitmix_noise(seed: int, position: int, token: int) -> float:
    """Follow the definition in plain integers."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix(mix((seed + golden) & mask) ^ ((position * 0xD1B54A32D192ED03) & mask))
    bits = mix((token * golden + key) & mask)
    uniform = ((bits >> 11) + 0.5) * 2.0**-53
    return float(-np.log(-np.log(uniform)))


def test_the_repetition_penalty_makes_a_written_token_less_likely_and_spares_the_row():
    log_probs = np.log(np.array([0.4, 0.35, 0.25], np.float32))
    before = log_probs.copy()
    assert choose(log_probs, 1, Sampling(repetition_penalty=1.5), [0]) == 1
    assert choose(log_probs, 1, Sampling(repetition_penalty=1.0), [0]) == 0
    assert np.array_equal(log_probs, before)


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": -1}, {"seed": -1}, {"temperature": float("nan")}],
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(RequestError, match=next(iter(bad))):
        Sampling(**bad)
