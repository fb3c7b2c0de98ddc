"""Our graph computes what transformers computes, for every member of the family."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from tests.support.tiny_models import FAMILIES, VOCABULARY, decoder_of, random_ids, torch_logits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_of_logits_is_that_of_transformers(name, family_model, family_bundle):
    ids = random_ids(300)
    expected = torch_logits(family_model(name), ids)
    decoder = decoder_of(family_bundle(name, "fp32"))
    assert expected.std() > 0.3  # so that the tolerance means something
    np.testing.assert_allclose(decoder.extend(ids, rows=len(ids)), expected, atol=3e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3"])
def test_the_cache_gives_the_same_logits_however_tokens_are_fed(name, family_model, family_bundle):
    ids = random_ids(40, seed=1)
    expected = torch_logits(family_model(name), ids)
    decoder = decoder_of(family_bundle(name, "fp32"))
    rows = [decoder.extend(ids[start:end], rows=end - start) for start, end in ((0, 1), (1, 2), (2, 9), (9, 30))]
    decoder.rewind(12)
    rows[3] = np.concatenate([rows[3][:3], decoder.extend(ids[12:40], rows=28)])
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=3e-4, rtol=0)


def test_only_the_rows_asked_for_go_through_the_head(family_bundle):
    bundle = open_bundle(family_bundle("llama-tied", "fp32"))
    graph = onnx.load(bundle.path("onnx/model.onnx"), load_external_data=False).graph
    producers = {output: node for node in graph.node for output in node.output}
    head = producers["logits"]
    chosen = producers[head.input[0]]
    # The matrix product of the head sees rows that were gathered before it, so its cost is R, not S.
    assert (chosen.op_type, chosen.input[1]) == ("Gather", "rows")
    logits = next(value for value in graph.output if value.name == "logits")
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["R", VOCABULARY]
    decoder = open_decoder(bundle, threads=1)
    ids = random_ids(20)
    last = decoder.extend(ids, rows=3)
    decoder.rewind(0)
    assert last.shape == (3, VOCABULARY)
    np.testing.assert_allclose(last, decoder.extend(ids, rows=20)[-3:], atol=1e-4)


def test_a_tied_matrix_is_stored_once(family_bundle):
    bundle = open_bundle(family_bundle("llama-tied", "fp32"))
    size = sum(entry.size for entry in bundle.manifest.files if entry.role == "weights")
    assert size == pytest.approx(4 * bundle.manifest.model.parameters, rel=0.02)


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "gemma"])
@pytest.mark.parametrize("rank", [1, 4])
def test_an_adapter_is_worth_its_product_added_to_the_weights(name, rank, family_model, family_bundle):
    bundle = open_bundle(family_bundle(name, "fp32"))
    model = AutoModelForCausalLM.from_pretrained(family_model(name), dtype=torch.float32).eval()
    rng = np.random.default_rng(rank)
    matrices = {}
    for layer in range(bundle.manifest.decoder.layers):
        for site in bundle.manifest.decoder.lora:
            for projection, width in site.projections:
                if projection == "k_proj":  # an adapter need not cover everything
                    continue
                a = rng.normal(0, 0.1, (site.in_features, rank)).astype(np.float32)
                b = rng.normal(0, 0.1, (rank, width)).astype(np.float32)
                matrices[layer, projection] = (a, b)
                block = model.model.layers[layer]
                module = getattr(block.self_attn, projection, None) or getattr(block.mlp, projection)
                module.weight.data += torch.from_numpy((a @ b).T)
    ids = random_ids(33)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    decoder = open_decoder(bundle, threads=1)
    plain = decoder.extend(ids, rows=len(ids))
    decoder.use_adapter(Adapter(bundle.base, f"test {rank}", matrices))
    adapted = decoder.extend(ids, rows=len(ids))
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(adapted, expected, atol=5e-4, rtol=0)
    decoder.use_adapter(None)
    np.testing.assert_array_equal(decoder.extend(ids, rows=len(ids)), plain)


def test_lora_inputs_have_rank_0_defaults_in_every_layer(family_bundle):
    bundle = open_bundle(family_bundle("qwen2", "fp32"))
    graph = onnx.load(bundle.path("onnx/model.onnx"), load_external_data=False).graph
    defaults = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    inputs = {value.name for value in graph.input}
    for layer in range(bundle.manifest.decoder.layers):
        for site in bundle.manifest.decoder.lora:
            prefix = f"layers.{layer}.{site.name}"
            width = sum(size for _, size in site.projections)
            assert defaults[f"{prefix}.lora_A"] == [site.in_features, 0]
            assert defaults[f"{prefix}.lora_B"] == [0, width]
            assert {f"{prefix}.lora_A", f"{prefix}.lora_B"} <= inputs


@pytest.mark.parametrize("name", ["llama-untied-biases", "qwen2", "qwen3", "gemma", "mistral"])
def test_int8_stays_close_to_transformers(name, family_model, family_bundle):
    ids = random_ids(64)
    expected = torch_logits(family_model(name), ids)
    found = decoder_of(family_bundle(name, "int8")).extend(ids, rows=len(ids))
    noise = np.sqrt(((found - expected) ** 2).mean()) / expected.std()
    assert noise < 0.05


@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_fewer_bits_make_a_smaller_bundle(name, family_bundle):
    manifests = [open_bundle(family_bundle(name, scheme)).manifest for scheme in ("int4", "mixed", "int8", "fp32")]
    assert [manifest.decoder.quantization.scheme for manifest in manifests] == ["int4", "mixed", "int8", "fp32"]
    sizes = [next(entry.size for entry in manifest.files if entry.role == "weights") for manifest in manifests]
    assert sizes == sorted(set(sizes))


def test_the_manifest_describes_the_graph(family_bundle):
    root = family_bundle("gemma", "int8")
    manifest = open_bundle(root).manifest
    assert manifest.decoder.kind == "shared_kv"
    assert (manifest.decoder.layers, manifest.decoder.kv_heads, manifest.decoder.head_dim) == (2, 1, 32)
    assert (manifest.context_length, manifest.vocab_size) == (1024, VOCABULARY)
    assert manifest.decoder.quantization.scheme == "int8"
    assert manifest.tokenizer.stop_token_ids == (1,)
    assert (manifest.tokenizer.bos_token, manifest.tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert manifest.source.kind == "huggingface"
    golden = json.loads((root / "golden.json").read_text())
    assert [len(vector["top_ids"]) for vector in golden["vectors"]] == [20] * 4
    assert max(len(vector["token_ids"]) for vector in golden["vectors"]) > 256
