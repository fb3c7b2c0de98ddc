"""Rows without ids that no token has are those of a softmax over the other ids alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.fusion.known_tokens import IMPOSSIBLE, NEVER, KnownTokens
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify

ROWS = 40


@given(ids=st.sets(st.integers(0, ROWS - 1), min_size=1), seed=st.integers(0, 99))
def test_rows_are_a_softmax_over_the_known_ids(ids: set[int], seed: int):
    logits = np.random.default_rng(seed).normal(0, 9, (3, ROWS)).astype(np.float32)
    known = KnownTokens.of(np.array(sorted(ids)))
    for hole in (NEVER, IMPOSSIBLE):
        rows = known.log_probs(logits.copy(), hole)
        assert rows.shape == (3, max(ids) + 1)
        np.testing.assert_allclose(
            rows[:, sorted(ids)], scipy.special.log_softmax(logits[:, sorted(ids)].astype(np.float64), -1), atol=1e-5
        )
        assert not np.exp(rows[:, known.holes]).any()


@given(ids=st.sets(st.integers(0, ROWS - 1), min_size=1), seed=st.integers(0, 99), top=st.integers(1, ROWS))
def test_another_models_row_becomes_that_of_the_known_ids(ids: set[int], seed: int, top: int):
    logits = np.random.default_rng(seed).normal(0, 3, max(ids) + 1).astype(np.float32)
    known = KnownTokens.of(np.array(sorted(ids)))
    sent = sparsify(scipy.special.log_softmax(logits), RowFormat(top))
    expected = known.log_probs(logits.copy(), IMPOSSIBLE)
    row = known.only(sent)
    kept = [token for token in sent.ids.tolist() if token in ids]
    if not kept:
        assert row is None
        return
    assert row is not None
    assert row.ids.tolist() == kept
    unsent = set(range(max(ids) + 1)) - ids - set(sent.ids.tolist())
    if not unsent:  # the mass of holes in the tail can't be told from the rest
        np.testing.assert_allclose(row.log_probs, expected[kept], atol=1e-4)
        assert row.tail_mass == pytest.approx(1 - np.exp(expected[kept], dtype=np.float64).sum(), abs=1e-4)


def test_rows_with_ids_outside_the_vocabulary_are_no_rows():
    row = SparseLogProbs(np.array([3, 9], np.int32), np.log([0.5, 0.5]).astype(np.float32), 0.0)
    assert KnownTokens.all(10).only(row) is row
    assert KnownTokens.all(9).only(row) is None


def test_ids_are_known_or_not():
    known = KnownTokens.of(np.array([0, 1, 4]))
    assert (known.size, known.holes.tolist()) == (5, [2, 3])
    assert known.has([])
    assert known.has([4, 0])
    for token in (2, 3, 5, -1):
        assert not known.has([0, token])
    with pytest.raises(ValueError, match="no id"):
        KnownTokens.of(np.array([], np.int64))
