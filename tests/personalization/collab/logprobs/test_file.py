"""The log-prob file: fusion computed from it is exact, and a damaged one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.fusion.fuse import Fusion, Strategy, fuse
from edge_runtime.fusion.sparse import THIN, RowFormat
from personalization.collab.combiner.fused_nll import fused_nll
from personalization.collab.logprobs.file import STEERING, encode_logprobs, joined, read_logprobs
from personalization.errors import DataError, SettingsError
from tests.support.random_logprobs import random_logprobs

FORMATS = st.sampled_from([THIN, RowFormat(16), RowFormat(3), RowFormat(400), RowFormat(16, 0.9), RowFormat(1)])
FUSIONS = st.one_of(
    st.builds(Fusion, st.sampled_from([Strategy.GEOMETRIC, Strategy.ARITHMETIC]), st.sampled_from([0, 0.2, 0.5, 1])),
    st.just(Fusion(Strategy.MAX)),
    st.builds(Fusion, st.just(Strategy.DELTA), st.sampled_from(STEERING)),
)


@given(st.integers(0, 2**32), st.integers(2, 300), FORMATS, FUSIONS, st.floats(0.1, 6.0))
@settings(max_examples=150)
def test_nll_from_the_file_is_that_of_fusing_whole_rows(seed, vocabulary, form, fusion, spread):
    made = random_logprobs(seed, vocabulary, form, records=2, length=4, spread=spread)
    expected = [
        -fuse(edge, cloud, fusion, without)[token]
        for answer in made.answers
        for token, edge, cloud, without in zip(answer.target, answer.edge, answer.cloud, answer.without, strict=True)
    ]
    np.testing.assert_allclose(fused_nll(made.file, fusion), expected, atol=2e-5, rtol=1e-5)


def test_each_models_own_nll_is_that_of_its_whole_row():
    made = random_logprobs(1, 200, THIN)
    (answer,) = made.answers
    at = np.arange(len(answer.target)), answer.target
    np.testing.assert_allclose(made.file.edge_nll, -answer.edge[at])
    np.testing.assert_allclose(made.file.cloud_nll, -answer.cloud_target)
    np.testing.assert_allclose(made.file.without_nll, -answer.without[at])


def test_a_file_gives_back_what_was_written_and_always_the_same_bytes(tmp_path: Path):
    rows = random_logprobs(2, 100, RowFormat(5), records=3).file
    path = tmp_path / "rows.logprobs"
    path.write_bytes(encode_logprobs(rows))
    found = read_logprobs(path)
    assert (found.about, found.records) == (rows.about, rows.records)
    for name, column in rows.columns().items():
        assert np.array_equal(found.columns()[name], column), name
    assert encode_logprobs(found) == path.read_bytes()
    assert found.step.tolist() == [0, 1, 2, 3, 4, 5] * 3


def test_parts_by_user_put_together_are_the_whole():
    rows = random_logprobs(3, 100, RowFormat(5), records=4).file
    parts = [rows.of_users([record.user]) for record in rows.records]
    assert encode_logprobs(joined(parts)) == encode_logprobs(rows)
    two = rows.of_users(["user-1", "user-3"])
    assert [record.id for record in two.records] == ["record-1", "record-3"]
    assert np.array_equal(two.edge_nll, np.concatenate([parts[1].edge_nll, parts[3].edge_nll]))


def test_steering_with_a_weight_that_was_not_summed_is_refused():
    rows = random_logprobs(4, 50, THIN).file
    with pytest.raises(SettingsError, match=r"0\.25, 0\.5"):
        fused_nll(rows, Fusion(Strategy.DELTA, 0.3))
    bare = replace(rows, without=None, without_rest=None, without_shift=None, steering_rest=None)
    with pytest.raises(DataError, match="--without"):
        fused_nll(bare, Fusion(Strategy.DELTA, 1.0))


def test_no_damage_is_believed(tmp_path: Path):
    whole = encode_logprobs(random_logprobs(5, 60, RowFormat(4), records=2).file)
    path = tmp_path / "rows.logprobs"
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"rows\.logprobs"):
            read_logprobs(path)
    refused = 0
    for place in rng.integers(8, len(whole), 300):
        broken = bytearray(whole)
        broken[place] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        try:
            found = read_logprobs(path)
        except DataError:
            refused += 1
        else:  # a number that could as well be another
            assert found.target_at.shape == (found.size,)
    assert refused > 30


def test_columns_that_contradict_each_other_are_named(tmp_path: Path):
    rows = random_logprobs(6, 60, RowFormat(4)).file
    path = tmp_path / "rows.logprobs"
    broken = {
        "token_count": replace(rows, token_count=rows.token_count[:-1]),
        "vocabulary": replace(rows, ids=rows.ids + 60),
        "finite": replace(rows, edge=np.full_like(rows.edge, np.nan)),
        "cloud sent": replace(rows, cloud_count=rows.cloud_count * 0),
    }
    for words, damaged in broken.items():
        path.write_bytes(encode_logprobs(damaged))
        with pytest.raises(DataError, match=words):
            read_logprobs(path)
    with pytest.raises(DataError, match="no file of log-probs"):
        read_logprobs(tmp_path / "none")
