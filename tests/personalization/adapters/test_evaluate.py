"""What an adapter is worth: likelihoods as transformers and PEFT compute them, and the interval of their mean."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scipy.stats
import torch
from typer.testing import CliRunner

from cogenesis import adapter as commands
from edge_runtime.adapters.store import directory_name
from edge_runtime.errors import CogenesisError
from personalization.adapters.evaluate import Likelihood, compare
from personalization.users.cogenesis_records import read_records
from personalization.users.data import context_of
from tests.support.personal_data import peft_model, record, torch_model, write_json

PEOPLE = [record(f"{i}_0_0", user_id=name) for i, name in enumerate(["ann", "ben"])]


def run(*arguments):
    result = CliRunner().invoke(commands.app, list(map(str, arguments)))
    if isinstance(result.exception, CogenesisError):
        return result.stdout, result.exception
    assert result.exception is None, result.exception
    return result.stdout, None


@pytest.fixture(scope="module")
def people(llama, tmp_path_factory):
    """A file of records, and its users' adapters."""
    root = tmp_path_factory.mktemp("people")
    records = write_json(root / "records.json", [*PEOPLE, record("2_0_0", user_id="without")])
    options = ("--targets", "all", "--rate", 1e-2, "--user", "ann", "--user", "ben")
    _, error = run("train", "-m", llama, "--records", records, "-o", root / "out", *options)
    assert error is None
    return records, root / "out"


def evaluate(model, records, adapters, *more):
    return run("evaluate", "-m", model, "--records", records, "-a", adapters, "--json", *more)


def by_hand(model, writer, pair, context):
    """Mean loss of the answer's own tokens, without the mark of its end, by transformers' own loss."""
    example = writer.write(pair, context, 1 << 20)
    ids = torch.tensor([[*example.prompt, *example.answer[:-1]]])
    labels = torch.tensor([[-100] * len(example.prompt) + list(example.answer[:-1])])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def test_likelihoods_are_those_of_transformers_and_peft(llama, llama_base, people):
    records, adapters = people
    output, error = evaluate(llama, records, adapters)
    assert error is None
    answer = json.loads(output)
    assert [row["user"] for row in answer["users"]] == ["ann", "ben"]
    file = read_records(records)
    for data, row in zip(file.users, answer["users"], strict=False):
        models = {"base": torch_model(llama), "adapter": peft_model(llama, adapters / directory_name(data.user))}
        (pair,) = file.questions[data.user]
        assert row["tokens"] == len(llama_base.writer.tokenizer.encode(pair.answer))
        for condition, context in (("task alone", None), ("with context", context_of(data.profile, data.pairs))):
            for kind, model in models.items():
                expected = by_hand(model, llama_base.writer, pair, context)
                assert row["nll"][condition][kind] == pytest.approx(expected, abs=2e-5)
    for condition, found in answer["summary"].items():
        pairs = [row["nll"][condition] for row in answer["users"]]
        differences = [pair["adapter"] - pair["base"] for pair in pairs]
        assert found["users"] == 2
        assert found["difference"] == pytest.approx(np.mean(differences))
        assert found["improved"] == sum(difference < 0 for difference in differences)


def test_the_context_can_be_left_out(llama, people):
    output, error = evaluate(llama, *people, "--no-context", "--user", "ben")
    assert error is None
    assert list(json.loads(output)["summary"]) == ["task alone"]
    table, _ = run("evaluate", "-m", llama, "--records", people[0], "-a", people[1], "--no-context")
    assert [line.split()[0] for line in table.splitlines() if line] == ["user", "ann", "ben", "users", "task"]


def test_the_interval_is_the_paired_bootstrap_over_users():
    random = np.random.default_rng(5)
    base = random.normal(3, 0.5, 40)
    adapter = base - random.normal(0.1, 0.3, 40)
    found = compare([Likelihood(*pair) for pair in zip(base, adapter, strict=True)])
    theirs = scipy.stats.bootstrap((adapter - base,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.005)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.005)
    assert found.difference == pytest.approx(np.mean(adapter - base))
    assert found.improved == np.sum(adapter < base)
    assert (found.base, found.adapter) == (pytest.approx(base.mean()), pytest.approx(adapter.mean()))


def test_a_damaged_adapter_fails_its_user_alone(llama, people, tmp_path):
    adapters = shutil.copytree(people[1], tmp_path / "out")
    (adapters / "ann" / "adapter_model.safetensors").write_bytes(b"nothing")
    output, error = evaluate(llama, people[0], adapters, "--no-context")
    assert error.exit_code == 9
    assert "1 of 2 users failed: ann" in str(error)
    assert "adapter_model" not in str(error) or "Train it again" in str(error)
    assert [row["user"] for row in json.loads(output)["users"]] == ["ben"]


def test_an_adapter_of_another_base_is_refused(llama, people, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    _, error = evaluate(other, *people)
    assert "trained on another base model" in str(error)


def test_nothing_to_score_is_an_error(llama, people, tmp_path):
    _, error = evaluate(llama, people[0], tmp_path)
    assert "nothing to score" in str(error)
