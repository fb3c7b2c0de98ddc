"""Training combiners: they learn which model to trust where, reproducibly, and when to ask the cloud."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime.fusion.combiner_file import read_combiner
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import RowFormat, sparsify
from edge_runtime.generation.schedule import LearnedSchedule
from export.progress import silent
from personalization.collab.combiner.fused_nll import asks, fused_nll
from personalization.collab.combiner.reference import Inputs, ReferenceCombiner, reference_nll
from personalization.collab.combiner.settings import CombinerSettings
from personalization.collab.combiner.train import read_reference, train_combiners
from personalization.collab.logprobs.cut import AnswerRows, cut_rows
from personalization.collab.logprobs.file import LogProbs, LogProbsOf, encode_logprobs, joined
from personalization.errors import DataError, SettingsError
from tests.support.commands import cogenesis, run_cogenesis
from tests.support.random_logprobs import random_logprobs

VOCABULARY = 120
FORM = RowFormat(16)
QUICK = CombinerSettings(members=2, epochs=8, batch=64, rate=5e-3)


def experts(seed: int, records: int, name: str) -> LogProbs:
    """Make rows in which the edge is right where it is certain, and the cloud is right elsewhere."""
    rng = np.random.default_rng(seed)
    about = LogProbsOf("edge", "base", "cloud", VOCABULARY, FORM, 16, without_context=False)
    parts = []
    for record in range(records):
        target = rng.integers(0, VOCABULARY, 40)
        knows = rng.random(40) < 0.5
        edge, cloud = (rng.standard_normal((2, 40, VOCABULARY)) * 1.5).astype(np.float32)
        edge[np.arange(40), target] += np.where(knows, 8.0, 0.0)
        cloud[np.arange(40), target] += np.where(knows, -1.0, 6.0)
        edge, cloud = log_softmax(edge), log_softmax(cloud)
        rows = AnswerRows(
            target.astype(np.int32), edge, [sparsify(row, FORM) for row in cloud], cloud[np.arange(40), target]
        )
        parts.append(cut_rows(rows, about, f"{name}-{record}", f"{name}-{record}"))
    return joined(parts)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logprobs")
    for name, seed, records in (("train", 0, 16), ("dev", 1, 6), ("test", 2, 8)):
        (directory / f"{name}.logprobs").write_bytes(encode_logprobs(experts(seed, records, name)))
    return directory


@pytest.fixture(scope="module")
def trained(files: Path) -> Path:
    out = files / "combiner"
    train_combiners([files / "train.logprobs"], [files / "dev.logprobs"], out, QUICK, reference=True, progress=silent)
    return out


def test_the_combiner_beats_both_models_every_fixed_mix_and_the_reference_on_other_users(trained: Path):
    rows = experts(2, 8, "test")
    learned = fused_nll(rows, Fusion(Strategy.LEARNED, combiner=read_combiner(trained / "combiner.safetensors")))
    fixed = [
        fused_nll(rows, Fusion(strategy, weight)).mean()
        for strategy in (Strategy.GEOMETRIC, Strategy.ARITHMETIC)
        for weight in np.arange(0.0, 1.05, 0.1).clip(0, 1)
    ]
    assert learned.mean() < min(fixed) - 0.2
    reference = reference_nll(rows, read_reference(trained / "reference.safetensors", VOCABULARY))
    assert learned.mean() < reference.mean()


def test_the_learned_schedule_keeps_the_gain_with_half_of_the_calls(trained: Path):
    rows = experts(2, 8, "test")
    combiner = read_combiner(trained / "combiner.safetensors")
    learned = Fusion(Strategy.LEARNED, combiner=combiner)
    schedule = LearnedSchedule(combiner)
    always, sometimes = fused_nll(rows, learned), fused_nll(rows, learned, schedule)
    assert asks(rows, schedule).mean() <= 0.55
    assert (rows.edge_nll - sometimes).mean() >= 0.8 * (rows.edge_nll - always).mean()
    assert asks(rows, schedule)[rows.step == 0].all()


def test_the_same_rows_and_settings_give_the_same_bytes(files: Path, trained: Path, tmp_path: Path):
    train_combiners([files / "train.logprobs"], [files / "dev.logprobs"], tmp_path, QUICK, progress=silent)
    assert (tmp_path / "combiner.safetensors").read_bytes() == (trained / "combiner.safetensors").read_bytes()


def test_what_is_done_is_kept_and_other_settings_are_refused(files: Path, trained: Path, monkeypatch):
    train = [files / "train.logprobs"], [files / "dev.logprobs"], trained
    monkeypatch.setattr("personalization.collab.combiner.train.train_compact", pytest.fail)
    report = train_combiners(*train, QUICK, progress=silent)
    assert report["compact"]["size_bytes"] == (trained / "combiner.safetensors").stat().st_size < 50_000
    with pytest.raises(SettingsError, match="set `force`"):
        train_combiners(*train, replace(QUICK, seed=1), progress=silent)


def test_the_reference_learns_and_keeps_its_best_epoch(trained: Path):
    report = json.loads((trained / "training.json").read_text())["reference"]
    training, judged = zip(*report["curve"], strict=True)
    assert len(training) == 5
    assert training[-1] < training[0]
    assert report["dev_nll"] == min(judged) == judged[report["best_epoch"]]


def test_the_reference_is_the_network_that_is_described_over_zero_filled_vectors():
    rows = random_logprobs(3, VOCABULARY, RowFormat(5)).file
    model = ReferenceCombiner(VOCABULARY)
    dense = nn.Sequential(nn.Linear(2 * VOCABULARY, 512), nn.ReLU(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 1))
    with torch.no_grad():
        dense[0].weight.copy_(model.tokens.weight.T)
        dense[0].bias.copy_(model.bias)
        for mine, theirs in zip((dense[2], dense[4]), (model.rest[1], model.rest[3]), strict=True):
            mine.load_state_dict(theirs.state_dict())
    whole = torch.zeros(rows.size, 2 * VOCABULARY)
    for index in range(rows.size):
        here = rows.row_of == index
        ids, edge = rows.ids[here], rows.edge[here]
        best = np.argsort(-edge)[:10]
        whole[index, ids[best]] = torch.from_numpy(edge[best])
        sent = rows.is_sent[here]
        whole[index, VOCABULARY + ids[sent]] = torch.from_numpy(rows.completed[here][sent])
    torch.testing.assert_close(model(Inputs.of(rows)), dense(whole)[:, 0], atol=1e-5, rtol=1e-5)
    # 2 x 49,152 tokens of SmolLM2: the model of CoGenesis' authors has about as many weights.
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * VOCABULARY * 512 + 512 + 512 * 16 + 33


def test_the_references_nll_is_that_of_geometric_fusion_with_its_weights():
    rows = random_logprobs(4, VOCABULARY, RowFormat(5)).file
    torch.manual_seed(0)
    model = ReferenceCombiner(VOCABULARY)
    weights = torch.sigmoid(model(Inputs.of(rows))).detach().double().numpy()
    expected = [fused_nll(rows, Fusion(Strategy.GEOMETRIC, weight))[index] for index, weight in enumerate(weights)]
    np.testing.assert_allclose(reference_nll(rows, model), expected, rtol=1e-6)


def test_users_on_both_sides_and_rows_of_other_models_are_refused(files: Path, tmp_path: Path):
    rows, dev = files / "train.logprobs", files / "dev.logprobs"
    with pytest.raises(DataError, match="user"):
        train_combiners([rows], [rows], tmp_path, QUICK, progress=silent)
    other = experts(5, 1, "other")
    (tmp_path / "other").write_bytes(encode_logprobs(replace(other, about=replace(other.about, cloud="another"))))
    with pytest.raises(DataError, match="other models"):
        train_combiners([rows, tmp_path / "other"], [dev], tmp_path, QUICK, progress=silent)


def test_the_command_says_what_it_reached_and_what_is_wrong(files: Path, tmp_path: Path):
    command = ["collab", "fuse-train", files / "train.logprobs", "--dev-rows", files / "dev.logprobs", "-o", tmp_path]
    said = cogenesis(*command, "--epochs", "1", "--members", "1")
    assert "combiner.safetensors" in said and "best fixed mix" in said
    wrong = run_cogenesis(*command, "--calls", "0")
    assert wrong.returncode == 9 and wrong.stderr.startswith("error: --calls must be above 0")
