"""Training on the real model: its prompts are the device's, and a few steps make a user's own words likelier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cogenesis import adapter as commands
from edge_runtime import PublicInstruction, load
from personalization.models.base_model import Base
from personalization.users.cogenesis_records import read_records
from personalization.users.data import context_of
from tests.support.datasets import Dataset


@pytest.fixture(scope="module")
def records(dataset: Dataset) -> Path:
    return dataset.cogenesis / "context_aware_dev.json"


def run(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(commands.app, [*map(str, arguments), "--json"])
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def test_prompts_are_those_of_a_bundle_of_the_same_model(smollm2_hf, bundle_keep, records):
    writer, assistant = Base(smollm2_hf, threads=1).writer, load(bundle_keep, threads=1)
    for data in read_records(records).users[:5]:
        pair, others = data.pairs[0], data.pairs[1:]
        for context in (None, context_of(data.profile, others)):
            example = writer.write(pair, context, 4096)
            assert example.prompt == assistant.prompt(PublicInstruction(pair.task), context).token_ids
            assert example.answer[-1] in assistant.bundle.manifest.tokenizer.stop_token_ids
            assert assistant.tokenizer.decode(example.answer) == pair.answer


@pytest.mark.slow_on_shared_data
def test_a_few_steps_make_a_users_own_words_likelier(smollm2_hf, records, tmp_path):
    out = tmp_path / "adapters"
    quick = ("--limit", 1, "--steps", 4, "--max-length", 160, "--threads", 2)
    (row,) = run("train", "-m", smollm2_hf, "--records", records, "-o", out, *quick)["users"]
    assert row["loss"]["after"] < row["loss"]["before"] - 0.02
    size = (out / row["directory"] / "adapter_model.safetensors").stat().st_size
    assert size == pytest.approx(1.9e6, rel=0.05)  # rank 8 on q and v of 30 layers, float32
