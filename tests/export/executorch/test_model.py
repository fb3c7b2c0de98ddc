"""The ExecuTorch program computes what transformers and PEFT compute, in the caller's own memory."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, BACKEND_ONNX
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import WriteError
from export.errors import ConformanceError, UnsupportedModelError
from export.executorch.export import export_executorch
from export.onnx.export import export_onnx
from tests.support.commands import MadeOnce
from tests.support.tiny_models import VOCABULARY, random_ids, torch_logits

# Each has a part that the others don't: biases, scaled rotation, head norms, norm offsets and embedding scale.
TRIED = ["llama-untied-biases", "qwen2-yarn", "qwen3", "gemma"]


@pytest.fixture(scope="session")
def program_bundle(made_once: MadeOnce, family_model):
    """A family's bundle with an fp32 program, made once."""

    def get(name):
        return made_once(
            f"executorch-{name}", lambda out: export_executorch(family_model(name), out, "fp32", adapter_sites="all")
        )

    return get


def decoder_of(bundle):
    return open_decoder(open_bundle(bundle), BACKEND_EXECUTORCH, threads=1)


@pytest.mark.parametrize("name", TRIED)
def test_every_row_of_logits_is_that_of_transformers(name, family_model, program_bundle):
    ids = random_ids(300)
    expected = torch_logits(family_model(name), ids)
    decoder = decoder_of(program_bundle(name))
    assert expected.std() > 0.3  # so that the tolerance means something
    np.testing.assert_allclose(decoder.extend(ids, rows=len(ids)), expected, atol=3e-4, rtol=0)


def test_the_caches_give_the_same_logits_however_tokens_are_fed(family_model, program_bundle):
    ids = random_ids(40, seed=1)
    expected = torch_logits(family_model("qwen3"), ids)
    decoder = decoder_of(program_bundle("qwen3"))
    rows = [decoder.extend(ids[start:end], rows=end - start) for start, end in ((0, 1), (1, 2), (2, 9), (9, 30))]
    decoder.rewind(12)
    rows[3] = np.concatenate([rows[3][:3], decoder.extend(ids[12:40], rows=28)])
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=3e-4, rtol=0)


def test_rows_are_chosen_before_the_head(program_bundle):
    decoder = decoder_of(program_bundle("qwen3"))
    ids = random_ids(20)
    last = decoder.extend(ids, rows=3)
    decoder.rewind(0)
    assert last.shape == (3, VOCABULARY)
    np.testing.assert_allclose(last, decoder.extend(ids, rows=20)[-3:], atol=1e-4)


def test_the_program_writes_into_the_memory_that_it_is_given_and_keeps_nothing(program_bundle):
    program = decoder_of(program_bundle("qwen3"))._program
    spec = program.spec
    ids = torch.tensor([random_ids(9)])
    positions = torch.arange(9)

    def step(caches, at):
        inputs = ids[:, at : at + 1], positions[at : at + 1], torch.tensor([0])
        logits = np.empty((1, VOCABULARY), np.float32)
        program.run((*inputs, *caches, *program.no_adapter), logits)
        return logits

    def caches(capacity):
        return [torch.zeros(1, capacity, spec.kv_heads, spec.head_dim) for _ in range(2 * spec.layers)]

    mine, other = caches(9), caches(5)
    for at in range(4):
        step(mine, at)
        step(other, at)
    written = [bool(cache[:, :4].abs().min() > 0) for cache in mine]
    assert all(written)
    assert all(not cache[:, 4:].any() for cache in mine)
    # What another sequence does, with caches of another size, is nothing to this one.
    before = [cache.clone() for cache in mine]
    expected = step(copy.deepcopy(mine), 4)
    step(other, 4)
    assert all(torch.equal(cache, kept) for cache, kept in zip(mine, before, strict=True))
    np.testing.assert_array_equal(step(mine, 4), expected)


@pytest.mark.parametrize(
    ("targets", "rank"),
    [
        (["q_proj", "v_proj"], 8),
        (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 16),
        (["down_proj"], 3),
    ],
)
def test_an_adapter_gives_the_logits_of_peft(targets, rank, family_model, program_bundle):
    name = "llama-untied-biases"
    base = AutoModelForCausalLM.from_pretrained(family_model(name), dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(rank)
    model = get_peft_model(base, config).eval()
    matrices = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach()
            place = int(path.split(".layers.")[1].split(".")[0]), path.rpartition(".")[2]
            matrices[place] = (a.T.numpy().copy(), (b.T * module.scaling["default"]).numpy().copy())
    ids = random_ids(33)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    bundle = open_bundle(program_bundle(name))
    decoder = open_decoder(bundle, BACKEND_EXECUTORCH, threads=1)
    plain = decoder.extend(ids, rows=len(ids))
    decoder.use_adapter(Adapter(bundle.base, "fingerprint", matrices, "test", "user", "tiny"))
    adapted = decoder.extend(ids, rows=len(ids))
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(adapted, expected, atol=1e-3, rtol=0)
    decoder.use_adapter(None)
    np.testing.assert_array_equal(decoder.extend(ids, rows=len(ids)), plain)


def test_the_manifest_describes_the_program(program_bundle):
    manifest = open_bundle(program_bundle("gemma")).manifest
    (decoder,) = manifest.decoders
    assert (decoder.backend, decoder.graph) == ("executorch", "executorch/model.pte")
    assert (decoder.layers, decoder.kv_heads, decoder.head_dim) == (2, 1, 32)
    assert (manifest.context_length, manifest.vocab_size) == (1024, VOCABULARY)
    assert decoder.quantization.scheme == "fp32"
    assert [site.name for site in decoder.lora] == ["qkv", "o", "gate_up", "down"]


def test_the_program_serves_no_more_positions_than_it_was_exported_for(program_bundle):
    decoder = decoder_of(program_bundle("gemma"))
    assert decoder.context_length == 1024
    decoder.extend(random_ids(1024))
    assert decoder.length == 1024


def test_a_bundle_of_the_same_model_gets_the_program_and_keeps_the_rest(family_model, tmp_path):
    out = tmp_path / "bundle"
    model = family_model("llama-tied")
    export_onnx(model, out, "int8", context_length=64)
    (out / "adapters").mkdir()
    (out / "adapters" / "mine").write_text("kept")
    with pytest.raises(WriteError, match="--context-length 64"):
        export_executorch(model, out, "int8")
    before = (out / "onnx" / "model.onnx.data").read_bytes()
    added = export_executorch(model, out, "int8", context_length=64)
    assert [site.name for site in added.decoder.lora] == ["qkv"]
    assert [spec.backend for spec in open_bundle(out).manifest.decoders] == ["onnx", "executorch"]
    assert added.decoder.backend == BACKEND_EXECUTORCH
    assert (out / "onnx" / "model.onnx.data").read_bytes() == before
    assert (out / "adapters" / "mine").read_text() == "kept"
    ids = random_ids(60)
    expected = torch_logits(model, ids)
    for backend in (BACKEND_ONNX, BACKEND_EXECUTORCH):
        found = open_decoder(open_bundle(out), backend, threads=1).extend(ids, rows=len(ids))
        assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 0.1
    with pytest.raises(WriteError):
        export_executorch(model, out, "int8", context_length=64)


def test_a_program_that_says_something_else_than_the_model_is_refused(family_model, program_bundle):
    from export.executorch.model import DecoderModel
    from export.executorch.trial import TOLERANCE, try_program
    from export.model.locate import open_source

    source = open_source(family_model("qwen3"))
    program = program_bundle("qwen3") / "executorch" / "model.pte"
    model = DecoderModel(source.architecture, source.read, source.read)
    assert try_program(program, model) < 1e-4 < TOLERANCE

    def read(name):
        return -source.read(name) if name == "model.layers.0.mlp.down_proj.weight" else source.read(name)

    with pytest.raises(ConformanceError, match=r"differs from the model.*model\.pte"):
        try_program(program, DecoderModel(source.architecture, read, read))


def test_a_damaged_program_is_refused(family_model, program_bundle, tmp_path):
    from export.executorch.model import DecoderModel
    from export.executorch.trial import try_program
    from export.model.locate import open_source

    source = open_source(family_model("qwen3"))
    program = (program_bundle("qwen3") / "executorch" / "model.pte").read_bytes()
    (tmp_path / "model.pte").write_bytes(program[: len(program) // 2])
    model = DecoderModel(source.architecture, source.read, source.read)
    with pytest.raises(ConformanceError, match="can't be run"):
        try_program(tmp_path / "model.pte", model)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 8}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        export_executorch(tmp_path, tmp_path / "out", "fp32")
