"""Ids that no token has are never written, and rows are those of a model without them; transformers is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cloud_bridge.client import connect
from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.server.engines.transformers_engine import load_engine
from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.assistant import load
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.generation.options import Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.privacy.gate import Policy
from export.onnx.export import export_onnx
from personalization.answering.torch_writer import TorchWriter
from personalization.answering.writer import WriterSpec
from personalization.collab.logprobs.model_spec import ModelSpec
from personalization.collab.logprobs.open_scorer import open_scorer
from personalization.collab.logprobs.scorer import LocalCloudRows
from tests.support.padded_models import KNOWN, UNKNOWN, make_padded_model

TASK = PublicInstruction("Say something about the sea.")
ALL = RowFormat(100_000)
LENGTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_padded_model(tmp_path_factory.mktemp("padded") / "model")


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    export_onnx(model, model.parent / "bundle", "fp32")
    return model.parent / "bundle"


@pytest.fixture(scope="module")
def loaded(model: Path):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def prompt_of(model: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [{"role": "user", "content": TASK.text}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def known_rows(loaded, token_ids: list[int], count: int) -> np.ndarray:
    """Return log-probs over the ids with a token: (count, 376) float64."""
    with torch.inference_mode():
        logits = loaded(torch.tensor([token_ids])).logits[0, -count:].double()
    assert np.isin(logits.argmax(-1).numpy(), UNKNOWN).all(), "the model must prefer ids without a token"
    return torch.log_softmax(logits[:, list(KNOWN)], -1).numpy()


def test_the_device_writes_what_transformers_writes_without_these_ids(model, bundle, loaded):
    prompt = prompt_of(model)
    expected = loaded.generate(
        torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, suppress_tokens=list(UNKNOWN)
    )[0, len(prompt) :].tolist()
    result = load(bundle, threads=1).generate(TASK, options=Options(LENGTH)).finish()
    stop = expected.index(1) if 1 in expected else len(expected)
    assert list(result.token_ids) == expected[:stop]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 100.0])
def test_samples_have_a_token_at_any_temperature(bundle, temperature):
    assistant = load(bundle, threads=1)
    for seed in range(4):
        options = Options(LENGTH, Sampling(temperature=temperature, seed=seed, repetition_penalty=2.0))
        result = assistant.generate(TASK, options=options).finish()
        assert not set(result.token_ids) & set(UNKNOWN)


@pytest.mark.parametrize("open_engine", [load_engine, load_onnx_engine])
def test_the_clouds_rows_are_those_of_a_model_without_these_ids(model, bundle, loaded, open_engine):
    engine = open_engine(str(model if open_engine is load_engine else bundle))
    assert engine.vocab_size == KNOWN[-1] + 1
    answer = [5, 302, 377, 17]
    state = engine.open(TASK.text)
    rows = engine.score(state, keep=0, tokens=answer, rows=range(5), form=ALL)
    expected = known_rows(loaded, prompt_of(model) + answer, 5)
    for row, right in zip(rows, expected, strict=True):
        assert row.ids.tolist() == list(KNOWN)
        np.testing.assert_allclose(row.log_probs, right, atol=1e-3)
        assert row.tail_mass < 1e-6
    (short,) = engine.score(state, keep=4, tokens=[], rows=[4], form=RowFormat(8))
    best = np.sort(expected[-1])[-8:]
    assert short.tail_mass == pytest.approx(1 - np.exp(best).sum(), abs=1e-4)
    for token in UNKNOWN:
        with pytest.raises(RefusalError, match="vocabulary"):
            engine.score(state, keep=4, tokens=[token], rows=[5], form=ALL)


@pytest.mark.parametrize("strategy", [one for one in Strategy if one is not Strategy.LEARNED])
def test_fused_answers_have_no_such_id_and_are_fused_throughout(bundle, strategy):
    engine = load_onnx_engine(str(bundle))
    assistant = load(bundle, threads=1)
    with serving(engine, ServerOptions()) as running, connect(running.address, call_timeout=20) as cloud:
        for temperature in (0.0, 1.5):
            options = Options(
                LENGTH,
                Sampling(temperature=temperature),
                fusion=Fusion(strategy, 0.5),
                rows=RowFormat(16),
                policy=Policy.OPEN,
            )
            context = PrivateContext("I like the sea.")
            result = assistant.generate(TASK, context, mode="fused", cloud=cloud, options=options).finish()
            assert result.cloud_error == ""
            assert all(result.fused)
            assert result.token_ids
            assert not set(result.token_ids) & set(UNKNOWN)


def test_log_probs_for_training_are_those_of_device_and_cloud(model, bundle, loaded):
    answer = [5, 302, 377, 17]
    for source, is_bundle in ((model, False), (bundle, True)):
        scorer = open_scorer(ModelSpec(source, "x", "x", is_bundle))
        edge = scorer.score(TASK, None, answer)
        expected = known_rows(loaded, prompt_of(model) + answer[:-1], 4)
        assert edge.shape == (4, KNOWN[-1] + 1)
        np.testing.assert_allclose(edge[:, list(KNOWN)], expected, atol=1e-3)
        rows, said = LocalCloudRows(scorer, ALL).rows(TASK, answer)
        assert [row.ids.tolist() for row in rows] == [list(KNOWN)] * 4
        np.testing.assert_allclose(
            said, [row[KNOWN.index(token)] for row, token in zip(expected, answer, strict=True)], atol=1e-3
        )


@pytest.mark.parametrize("beams", [1, 3])
def test_torch_writes_only_tokens(model, loaded, beams):
    writer = TorchWriter(WriterSpec(model, "x", False, threads=1, most_tokens=12, beams=beams, one_line=False))
    written: list[list[int]] = []
    decode = writer._base.writer.tokenizer.decode
    writer._base.writer.tokenizer.decode = lambda ids, **more: written.append(list(ids)) or decode(ids, **more)
    writer.write([TASK.text, "A boat."], None)
    assert written
    assert not {token for ids in written for token in ids} & set(UNKNOWN)
