"""Sparse rows: what is kept, what the tail weighs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from edge_runtime.sparse import SparseLogProbs, sparsify

relaxed = settings(max_examples=200, deadline=None)
rows = arrays(np.float32, st.integers(1, 300), elements=st.floats(-60, 60, width=32)).map(
    lambda logits: log_softmax(logits.astype(np.float64)).astype(np.float32)
)


@relaxed
@given(row=rows, k=st.integers(1, 400))
def test_the_likeliest_are_kept_and_the_tail_is_the_rest(row, k):
    sparse = sparsify(row, k)
    k = min(k, row.size)
    assert sparse.ids.dtype == np.int32 and sparse.log_probs.dtype == np.float32
    assert sparse.ids.size == k and np.all(np.diff(sparse.ids) > 0)
    assert np.array_equal(sparse.log_probs, row[sparse.ids])
    rest = np.delete(row, sparse.ids)
    assert rest.size == 0 or rest.max() <= sparse.log_probs.min()
    assert sparse.tail_mass == pytest.approx(np.exp(rest.astype(np.float64)).sum(), abs=1e-4)
    assert (sparse.tail_mass == 0.0) or k < row.size


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
