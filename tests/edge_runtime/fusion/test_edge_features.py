"""What the edge's rows tell: of any vocabulary the same number of numbers, all finite, on a device as in a file."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.fusion.edge_features import LEAST_PROBE, PROBES, RECENT, SCHEDULE_FEATURES, probe_ids, probes_of
from edge_runtime.fusion.edge_features import schedule_features as features_of
from edge_runtime.fusion.logprobs import log_softmax


@given(st.integers(1, 200_000))
def test_probes_are_tokens_of_the_vocabulary_from_end_to_end(vocabulary):
    ids = probe_ids(vocabulary)
    assert ids.shape == (PROBES,)
    assert (ids[0], ids[-1]) == (0, vocabulary - 1)
    assert len(set(ids.tolist())) == min(PROBES, vocabulary)
    assert (np.diff(ids) >= 0).all()


def test_probes_of_several_rows_are_those_of_each():
    rows = log_softmax(np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32))
    np.testing.assert_array_equal(probes_of(rows), [row[probe_ids(300)] for row in rows])


def test_tokens_that_a_model_never_writes_stay_finite():
    row = np.full(200, -np.inf, np.float32)
    row[7] = 0.0
    features = features_of(row[[7, 8]].clip(-100).astype(np.float64), [-np.inf] * 9, probes_of(row), 3)
    assert features.shape == (SCHEDULE_FEATURES,)
    assert np.isfinite(features).all()
    assert features[-1] == LEAST_PROBE


def test_the_latest_token_comes_first_and_a_beginning_is_filled_up():
    top, probes = np.log([0.5, 0.3]), np.zeros(PROBES, np.float32)
    recent = slice(-PROBES - RECENT, -PROBES)
    assert features_of(top, [-1.0, -2.0, -3.0, -4.0], probes, 4)[recent].tolist() == [-4.0, -3.0, -2.0]
    begun = features_of(top, [-1.0], probes, 1)[recent].tolist()
    assert begun[0] == -1.0 and begun[1] == begun[2]
