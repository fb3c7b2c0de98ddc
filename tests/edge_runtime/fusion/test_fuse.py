"""Fusion: the results of each strategy, and how the cloud's tail is completed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import logsumexp

from edge_runtime.errors import RequestError
from edge_runtime.fusion.fuse import Fusion, Strategy, complete_tail, fuse
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify
from tests.support.examples import examples
from tests.support.random_combiners import random_combiner


def rows(seed: int, vocabulary: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return log_softmax((rng.standard_normal((2, vocabulary)) * spread).astype(np.float32))


@st.composite
def edge_and_cloud(draw):
    vocabulary = draw(st.integers(2, 400))
    k = draw(st.integers(1, vocabulary))
    edge, cloud = rows(draw(st.integers(0, 2**32)), vocabulary, draw(st.floats(0.01, 12.0)))
    return edge, sparsify(cloud, RowFormat(k)), cloud


def reference_tail(edge: np.ndarray, cloud: SparseLogProbs) -> np.ndarray:
    """Follow the definition, one token at a time: share in proportion to the edge, cap, share the excess."""
    edge, kept = edge.astype(np.float64), cloud.log_probs.astype(np.float64)
    outside = [t for t in range(edge.shape[0]) if t not in set(cloud.ids.tolist())]
    share, capped, mass = {}, set(), max(cloud.tail_mass, 1e-9)
    ceiling = np.exp(kept.min()) / 2
    if mass > len(outside) * ceiling:
        ceiling *= 2
    while True:
        free = [t for t in outside if t not in capped]
        total = sum(np.exp(edge[t]) for t in free)
        left = mass - len(capped) * ceiling
        share = {t: left * np.exp(edge[t]) / total for t in free}
        over = {t for t in free if share[t] > ceiling * (1 + 1e-6)}
        if not over:
            break
        if len(over) == len(free):
            share = dict.fromkeys(free, ceiling)
            break
        capped |= over
    dense = np.empty_like(edge)
    for token in outside:
        dense[token] = np.log(share.get(token, ceiling))
    dense[cloud.ids] = kept
    return dense


@given(edge_and_cloud())
@settings(max_examples=examples(200), deadline=None)
def test_a_completed_row_keeps_the_kept_sums_to_one_and_never_passes_the_smallest_kept(case):
    edge, cloud, _ = case
    dense = complete_tail(edge, cloud)
    assert np.array_equal(dense[cloud.ids], cloud.log_probs)
    assert np.isfinite(dense).all()
    assert abs(np.exp(dense.astype(np.float64)).sum() - 1.0) < 1e-4
    tail = np.delete(dense, cloud.ids)
    assert tail.size == 0 or tail.max() <= cloud.log_probs.min() + 1e-6
    heavy = max(cloud.tail_mass, 1e-9) > tail.size * np.exp(cloud.log_probs.min()) / 2 * (1 - 1e-4)
    assert heavy or tail.size == 0 or tail.max() <= cloud.log_probs.min() + np.log(0.5) + 1e-5


@given(edge_and_cloud())
@settings(max_examples=examples(150), deadline=None)
def test_a_completed_row_follows_the_definition(case):
    edge, cloud, _ = case
    # Masses, not logs: the last digit of a float32 tail mass matters for a token of mass 1e-7.
    np.testing.assert_allclose(
        np.exp(complete_tail(edge, cloud)), np.exp(reference_tail(edge, cloud)), atol=2e-6, rtol=1e-3
    )


@given(edge_and_cloud(), st.sampled_from([one for one in Strategy if one is not Strategy.LEARNED]), st.floats(0.0, 1.0))
@settings(max_examples=examples(200), deadline=None)
def test_fused_rows_are_normalised_log_probs(case, strategy, weight):
    edge, cloud, without = case
    fused = fuse(edge, cloud, Fusion(strategy, weight), without)
    assert fused.dtype == np.float32
    assert fused.shape == edge.shape
    assert np.isfinite(fused).all()
    assert abs(np.exp(fused.astype(np.float64)).sum() - 1.0) < 1e-4


@given(st.integers(0, 2**32), st.integers(2, 300), st.floats(0.05, 0.95), st.floats(0.1, 6.0))
@settings(max_examples=examples(100), deadline=None)
def test_with_the_whole_cloud_row_each_strategy_is_its_formula(seed, vocabulary, weight, spread):
    edge, cloud = rows(seed, vocabulary, spread)
    without = rows(seed + 1, vocabulary, spread)[0]
    whole = sparsify(cloud, RowFormat(vocabulary))
    e, c, e0 = edge.astype(np.float64), cloud.astype(np.float64), without.astype(np.float64)
    formulas = {
        Strategy.GEOMETRIC: scipy_log_softmax(weight * e + (1 - weight) * c),
        Strategy.ARITHMETIC: logsumexp([e + np.log(weight), c + np.log1p(-weight)], axis=0),
        Strategy.MAX: scipy_log_softmax(np.maximum(e, c)),
        Strategy.DELTA: scipy_log_softmax(c + weight * (e - e0)),
    }
    for strategy, expected in formulas.items():
        np.testing.assert_allclose(fuse(edge, whole, Fusion(strategy, weight), without), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", [Strategy.GEOMETRIC, Strategy.ARITHMETIC])
def test_all_weight_on_the_edge_gives_the_edge(strategy):
    edge, cloud = rows(3, 500, 4.0)
    np.testing.assert_allclose(fuse(edge, sparsify(cloud, RowFormat(16)), Fusion(strategy, 1.0)), edge, atol=1e-5)


@pytest.mark.parametrize("strategy", [Strategy.GEOMETRIC, Strategy.ARITHMETIC])
def test_no_weight_on_the_edge_gives_the_completed_cloud(strategy):
    edge, cloud = rows(4, 500, 4.0)
    sparse = sparsify(cloud, RowFormat(16))
    expected = complete_tail(edge, sparse)
    np.testing.assert_allclose(fuse(edge, sparse, Fusion(strategy, 0.0)), expected, atol=1e-5)


def test_fusing_changes_neither_input():
    edge, cloud = rows(5, 500, 4.0)
    sparse = sparsify(cloud, RowFormat(16))
    before = edge.copy(), sparse.log_probs.copy()
    for strategy in Strategy:
        fuse(edge, sparse, Fusion(strategy, 0.3, random_combiner(0)), edge)
    assert np.array_equal(edge, before[0])
    assert np.array_equal(sparse.log_probs, before[1])


def test_a_cloud_that_is_certain_leaves_no_token_impossible():
    edge, _ = rows(6, 100, 3.0)
    certain = SparseLogProbs(np.array([7], np.int32), np.array([0.0], np.float32), 0.0)
    assert np.isfinite(fuse(edge, certain, Fusion(Strategy.GEOMETRIC, 0.0))).all()


def test_unknown_strategies_and_weights_out_of_range_are_refused():
    with pytest.raises(RequestError, match="geometric, arithmetic, max, delta, learned"):
        Fusion("mean")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="weight"):
        Fusion(Strategy.GEOMETRIC, 1.5)
    Fusion(Strategy.DELTA, 1.5)


def test_delta_steering_needs_the_row_without_context():
    edge, cloud = rows(8, 50, 1.0)
    with pytest.raises(ValueError, match="without the context"):
        fuse(edge, sparsify(cloud, RowFormat(4)), Fusion(Strategy.DELTA, 1.0))
