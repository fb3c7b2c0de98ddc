"""The learned combiner at run time: a distribution over the whole vocabulary, and a file that can't do harm."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edge_runtime.errors import BundleError
from edge_runtime.fusion.combiner import EXPERTS, OF_THE_EDGE, TOKEN_FEATURES, Candidates
from edge_runtime.fusion.combiner_file import FORMAT, encode_combiner, read_combiner
from edge_runtime.fusion.fuse import Fusion, Strategy, fuse
from edge_runtime.fusion.sparse import THIN, RowFormat
from edge_runtime.generation.options import Options
from edge_runtime.generation.schedule import Decision, LearnedSchedule
from personalization.collab.combiner.fused_nll import asks, fused_nll
from personalization.collab.combiner.rows import combiner_rows
from tests.support.random_combiners import random_combiner
from tests.support.random_logprobs import random_logprobs

FORMATS = st.sampled_from([THIN, RowFormat(16), RowFormat(3), RowFormat(40), RowFormat(16, 0.9), RowFormat(1)])


@given(st.integers(0, 2**32), st.integers(100, 400), FORMATS, st.booleans(), st.floats(0.1, 8.0))
@settings(max_examples=60)
def test_fused_rows_are_distributions_in_which_nothing_is_impossible(seed, vocabulary, form, without, spread):
    made = random_logprobs(seed, vocabulary, form, length=2, spread=spread)
    combiner = random_combiner(seed % 7, without=without)
    (answer,) = made.answers
    for step, (edge, cloud, bare) in enumerate(zip(answer.edge, answer.cloud, answer.without, strict=True)):
        fused = fuse(edge, cloud, Fusion(Strategy.LEARNED, combiner=combiner), bare, step)
        assert fused.dtype == np.float32 and fused.shape == edge.shape
        assert np.isfinite(fused).all()
        assert abs(np.exp(fused.astype(np.float64)).sum() - 1.0) < 1e-4
        assert (fused >= edge + np.log(OF_THE_EDGE) - 1e-3).all()


@given(st.integers(0, 2**32), FORMATS, st.booleans(), st.floats(0.1, 6.0))
@settings(max_examples=40)
def test_nll_from_the_file_is_that_of_fusing_whole_rows(seed, form, without, spread):
    made = random_logprobs(seed, 300, form, records=2, length=3, spread=spread)
    fusion = Fusion(Strategy.LEARNED, combiner=random_combiner(seed % 5, without=without))
    expected = [
        -fuse(edge, cloud, fusion, bare, step)[token]
        for answer in made.answers
        for step, (token, edge, cloud, bare) in enumerate(
            zip(answer.target, answer.edge, answer.cloud, answer.without, strict=True)
        )
    ]
    np.testing.assert_allclose(fused_nll(made.file, fusion), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_schedule_asks_offline_where_it_asks_on_the_device(share):
    made = random_logprobs(1, 300, THIN, records=3, length=20)
    schedule = LearnedSchedule(random_combiner(4, gap=1.0), share)
    expected = []
    for answer in made.answers:
        told: list[float] = []
        decisions: list[Decision] = []
        for step, (edge, token) in enumerate(zip(answer.edge, answer.target, strict=True)):
            if step:
                decisions.append(schedule.decide(step, edge, told, decisions))
            expected.append(decisions[-1].asks if step else True)
            told.append(float(edge[token]))
    assert asks(made.file, schedule).tolist() == expected
    assert 5 < sum(expected) < 55


def test_the_mixture_is_its_formula_in_torch():
    row = next(combiner_rows(random_logprobs(2, 300, RowFormat(12)).file, without=True)).candidates
    outputs = torch.from_numpy(np.random.default_rng(0).standard_normal(EXPERTS * (TOKEN_FEATURES + 1)))
    scores = outputs[EXPERTS:].view(EXPERTS, TOKEN_FEATURES) @ torch.from_numpy(row.tokens())
    mixed = (outputs[:EXPERTS].softmax(0)[:, None] * scores.softmax(1)).sum(0)
    expected = torch.log((1 - OF_THE_EDGE) * mixed + OF_THE_EDGE * torch.from_numpy(row.edge).exp())
    np.testing.assert_allclose(row.mix(outputs.numpy()), expected.numpy(), rtol=1e-9)


def test_candidates_share_all_of_both_models_mass():
    row = Candidates.of(np.log([0.5, 0.2, 0.1]), np.log([0.5, 0.2, 0.1]), np.log([0.6, 0.2]), 0.2, 0.2, None)
    np.testing.assert_allclose(np.exp(row.edge).sum(), 1.0)
    # The edge's third has a third of what the cloud leaves: less than half of the cloud's least.
    np.testing.assert_allclose(np.exp(row.cloud), [0.6, 0.2, 0.2 / 3, 0.4 / 3])


def test_fusing_without_what_it_needs_is_refused():
    (answer,) = random_logprobs(3, 100, THIN).answers
    with pytest.raises(ValueError, match="needs a combiner"):
        fuse(answer.edge[0], answer.cloud[0], Fusion(Strategy.LEARNED))
    with pytest.raises(ValueError, match="without the context"):
        fuse(answer.edge[0], answer.cloud[0], Fusion(Strategy.LEARNED, combiner=random_combiner(0, without=True)))


def test_a_file_gives_back_the_combiner_and_is_small(tmp_path: Path):
    path = tmp_path / "combiner.safetensors"
    for without in (False, True):
        form = RowFormat(9, 0.9, "float16", 1e-3)
        combiner = replace(random_combiner(5, without=without, rows=form), threshold=0.125)
        path.write_bytes(encode_combiner(combiner))
        found = read_combiner(path)
        assert encode_combiner(found) == path.read_bytes()
        assert (found.base, found.cloud, found.uses_without, found.threshold) == ("base", "cloud", without, 0.125)
        assert found.rows == form
        assert np.array_equal(found.out.weight, combiner.out.weight)
        assert np.array_equal(load_file(path)["hidden.bias"], combiner.hidden.bias)
        assert path.stat().st_size < 50_000


def test_no_damage_is_believed(tmp_path: Path):
    whole = encode_combiner(random_combiner(6))
    path = tmp_path / "combiner.safetensors"
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole), 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(BundleError, match="combiner"):
            read_combiner(path)
    for place in rng.integers(0, len(whole), 200):
        broken = bytearray(whole)
        broken[place] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        with pytest.raises(BundleError, match=r"combiner\.safetensors"):
            read_combiner(path)
    path.write_bytes(whole + b"\0" * 60_000)
    with pytest.raises(BundleError, match="50,000 bytes"):
        read_combiner(path)
    with pytest.raises(BundleError, match="no combiner here"):
        read_combiner(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: replace(layer, weight=np.full_like(layer.weight, np.nan)), "beyond"),
        (lambda layer: replace(layer, weight=layer.weight * 1e9), "beyond"),
        (lambda layer: replace(layer, weight=layer.weight[:-1]), "don't fit"),
        (lambda layer: replace(layer, bias=layer.bias[:, None]), "don't fit"),
    ],
)
def test_well_signed_nonsense_is_refused(tmp_path: Path, change, words):
    path = tmp_path / "combiner.safetensors"
    combiner = random_combiner(7)
    for name in ("hidden", "out", "gain_hidden", "gain_out"):
        path.write_bytes(encode_combiner(replace(combiner, **{name: change(getattr(combiner, name))})))
        with pytest.raises(BundleError, match=words):
            read_combiner(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", 1.5), ("top_k", 0), ("mass", 2.0), ("mass", "all"), ("value_type", "bits1"), ("floor", 1.0)],
)
def test_a_form_of_rows_that_no_cloud_could_send_is_refused(tmp_path: Path, field, value):
    form = copy(THIN)
    object.__setattr__(form, field, value)
    path = tmp_path / "combiner.safetensors"
    path.write_bytes(encode_combiner(random_combiner(9, rows=form)))
    with pytest.raises(BundleError, match="Train it again"):
        read_combiner(path)


def test_learned_fusion_asks_for_the_rows_that_its_combiner_has_learnt():
    form = RowFormat(40, floor=1e-3)
    learned = Fusion(Strategy.LEARNED, combiner=random_combiner(0, rows=form))
    assert Options(fusion=learned).row_format == form
    assert Options(fusion=learned, rows=THIN).row_format == Options().row_format == THIN


def test_a_threshold_that_is_no_number_and_other_tensors_are_refused(tmp_path: Path):
    path = tmp_path / "combiner.safetensors"
    path.write_bytes(encode_combiner(replace(random_combiner(8), threshold=float("nan"))))
    with pytest.raises(BundleError, match="threshold"):
        read_combiner(path)
    save_file({"x": np.zeros(3, np.float32)}, path, {"format": FORMAT, "about": json.dumps({})})
    with pytest.raises(BundleError, match="digest"):
        read_combiner(path)
