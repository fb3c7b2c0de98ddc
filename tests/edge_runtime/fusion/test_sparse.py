"""Sparse rows: kept tokens, tail mass, and rejected values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from edge_runtime.errors import RequestError
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify
from tests.support.examples import examples

relaxed = settings(max_examples=examples(300), deadline=None)
# Few distinct values give ties; up to 3,000 tokens pass through every way of finding the likeliest.
rows = st.one_of(
    arrays(np.float32, st.integers(1, 300), elements=st.floats(-60, 60, width=32)),
    arrays(np.float32, st.integers(1, 3000), elements=st.integers(-3, 3).map(float), fill=st.just(0.0)),
    st.builds(
        lambda seed, size, spread: (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32),
        st.integers(0, 2**32),
        st.integers(1, 3000),
        st.floats(0.01, 12),
    ),
).map(lambda logits: log_softmax(logits.astype(np.float64)).astype(np.float32))
masses = st.one_of(st.just(1.0), st.floats(0.01, 1.0))
floors = st.one_of(st.just(0.0), st.floats(1e-6, 0.5))


def defined(row: np.ndarray, form: RowFormat) -> list[int]:
    """Follow the definition, one token at a time."""
    kept: list[int] = []
    mass = 0.0
    for token in sorted(range(row.size), key=lambda token: (-row[token], token)):
        if len(kept) == form.top_k or (form.mass < 1.0 and mass >= form.mass):
            break
        if kept and form.floor and row[token] < np.float32(np.log(form.floor)):
            break
        kept.append(token)
        mass += float(np.exp(np.float32(row[token]), dtype=np.float64))
    return sorted(kept)


@relaxed
@given(row=rows, form=st.builds(RowFormat, st.integers(1, 4000), masses, st.just("float32"), floors))
def test_a_row_keeps_the_fewest_likeliest_tokens_that_the_format_allows(row, form):
    sparse = sparsify(row, form)
    assert sparse.ids.dtype == np.int32 and sparse.log_probs.dtype == np.float32
    assert sparse.ids.tolist() == defined(row, form)
    assert np.array_equal(sparse.log_probs, row[sparse.ids])


@relaxed
@given(row=rows, form=st.builds(RowFormat, st.integers(1, 4000), masses, st.just("float32"), floors))
def test_the_tail_is_the_mass_of_all_others_however_small(row, form):
    sparse = sparsify(row, form)
    rest = np.exp(np.delete(row, sparse.ids).astype(np.float64)).sum()
    assert sparse.tail_mass == pytest.approx(rest, rel=1e-3, abs=1e-5 if rest > 1e-3 else 1e-12)
    assert sparse.tail_mass == 0.0 or sparse.ids.size < row.size


def test_of_equally_likely_tokens_the_lowest_ids_are_kept():
    row = np.log(np.full(2000, 1 / 2000, np.float32))
    assert sparsify(row, RowFormat(3)).ids.tolist() == [0, 1, 2]
    row[1234] += 1.0
    assert sparsify(row, RowFormat(3)).ids.tolist() == [0, 1, 1234]


@pytest.mark.parametrize("form", [RowFormat(4), RowFormat(10_000), RowFormat(64, 1.0, "bits12", 1e-9)])
def test_tokens_that_can_not_come_are_never_kept(form):
    row = np.full(2000, -np.inf, np.float32)
    row[[7, 1500]] = np.log(0.5)
    sparse = sparsify(row, form)
    assert sparse.ids.tolist() == [7, 1500]
    assert sparse.tail_mass == 0.0


def test_the_likeliest_token_is_kept_below_any_floor():
    row = np.log(np.full(2000, 1 / 2000, np.float32))
    assert sparsify(row, RowFormat(64, 1.0, "bits12", 0.5)).ids.tolist() == [0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_k": 0}, "top_k"),
        ({"mass": 0.0}, "mass"),
        ({"mass": 1.1}, "mass"),
        ({"mass": float("nan")}, "mass"),
        ({"floor": -0.1}, "floor"),
        ({"floor": 1.0}, "floor"),
        ({"floor": float("nan")}, "floor"),
        ({"value_type": "int4"}, "`value_type` must be one of .*, not 'int4'"),
    ],
)
def test_an_impossible_format_is_refused(fields, said):
    with pytest.raises(RequestError, match=said):
        RowFormat(**fields)


@pytest.mark.parametrize(
    ("ids", "log_probs", "tail_mass", "said"),
    [
        ([], [], 0.5, "at least one"),
        ([1, 1], [-1, -1], 0.1, "distinct"),
        ([2, 1], [-1, -1], 0.1, "ascending"),
        ([-1, 1], [-1, -1], 0.1, "not negative"),
        ([0], [0.5], 0.1, "not above 0"),
        ([0], [-np.inf], 0.1, "finite"),
        ([0], [np.nan], 0.1, "finite"),
        ([0], [-1], -0.1, "tail mass"),
        ([0], [-1], 1.1, "tail mass"),
        ([0], [-1], np.nan, "tail mass"),
        ([0, 1], [-1], 0.1, "equal 1-D shapes"),
        ([[0]], [[-1]], 0.1, "equal 1-D shapes"),
    ],
)
def test_what_is_no_distribution_is_refused(ids, log_probs, tail_mass, said):
    with pytest.raises(ValueError, match=said):
        SparseLogProbs(np.array(ids, np.int32), np.array(log_probs, np.float32), tail_mass)
