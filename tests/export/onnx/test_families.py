"""Our graph computes what transformers does, for every family: beyond its windows, in any steps, with adapters."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.store import AdapterStore
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from export.adapters.export import export_adapter
from export.errors import UnsupportedModelError, UnsupportedQuantizationError
from export.onnx.export import export_onnx
from tests.support.tiny_families import SHAPES, WINDOW
from tests.support.tiny_models import decoder_of, make_model, make_tokenizer, random_ids, torch_logits

ONE_EACH = ("mistral", "qwen3", "gemma2", "gemma3", "phi3-partial", "olmo2", "smollm3", "granite", "stablelm-biases")
TOLERANCE = 1e-4
LENGTH = 3 * WINDOW + 8


@pytest.fixture(scope="session")
def shape(tmp_path_factory):
    """Return the model and bundle of one of `SHAPES`, made once."""
    made = {}

    def get(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            model = make_model(root / "model", **SHAPES[name])
            export_onnx(model, root / "bundle", "fp32")
            made[name] = model, root / "bundle"
        return made[name]

    return get


@pytest.mark.parametrize("name", SHAPES)
def test_every_row_is_that_of_transformers_however_tokens_are_fed(name, shape):
    model, bundle = shape(name)
    ids = random_ids(LENGTH)
    expected = torch_logits(model, ids)
    assert expected.std() > 0.3  # gives the tolerance a meaning
    decoder = decoder_of(bundle)
    np.testing.assert_allclose(decoder.extend(ids, rows=LENGTH), expected, atol=TOLERANCE, rtol=0)
    decoder.rewind(5)
    cuts = [*range(5, 2 * WINDOW), LENGTH - 20, LENGTH]
    rows = [decoder.extend(ids[start:end], rows=end - start) for start, end in pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(rows), expected[5:], atol=TOLERANCE, rtol=0)
    decoder.rewind(WINDOW + 3)
    other = decoder.fork()
    other.restore(decoder.save())
    found = other.extend(ids[WINDOW + 3 :], rows=LENGTH - WINDOW - 3)
    np.testing.assert_allclose(found, expected[WINDOW + 3 :], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ONE_EACH)
def test_64_greedy_tokens_are_those_of_transformers(name, shape):
    directory, bundle = shape(name)
    ids = random_ids(12, seed=3)
    decoder = decoder_of(bundle)
    written = list(ids)
    row = decoder.extend(ids, rows=1)[0]
    for _ in range(64):
        written.append(int(row.argmax()))
        row = decoder.extend(written[-1:], rows=1)[0]
    # Each token is the best after those before it.
    expected = torch_logits(directory, written).argmax(1)
    assert written[len(ids) :] == expected[len(ids) - 1 : -1].tolist()


@pytest.mark.parametrize("name", [name for name in ONE_EACH if not name.startswith("phi3")])
def test_an_adapter_on_all_linear_layers_is_its_product_added_to_the_weights(name, shape):
    directory, root = shape(name)
    bundle = open_bundle(root)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    rng = np.random.default_rng(1)
    matrices = {}
    for layer in range(bundle.manifest.decoder.layers):
        for site in bundle.manifest.decoder.lora:
            for projection, width in site.projections:
                a = rng.normal(0, 0.1, (site.in_features, 3)).astype(np.float32)
                b = rng.normal(0, 0.1, (3, width)).astype(np.float32)
                matrices[layer, projection] = (a, b)
                block = model.model.layers[layer]
                module = getattr(block.self_attn, projection, None) or getattr(block.mlp, projection)
                module.weight.data += torch.from_numpy((a @ b).T)
    ids = random_ids(LENGTH)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    decoder = open_decoder(bundle, threads=1)
    decoder.use_adapter(Adapter(bundle.base, "all", matrices))
    np.testing.assert_allclose(decoder.extend(ids, rows=LENGTH), expected, atol=5e-4, rtol=0)


def test_an_adapter_on_fused_projections_is_split(shape, tmp_path):
    directory, root = shape("phi3-partial")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(
        r=4, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], init_lora_weights=False
    )
    trained = get_peft_model(model, config).eval()
    trained.save_pretrained(tmp_path / "peft")
    export_adapter(tmp_path / "peft", root, "anna", "fp32", base=directory)
    bundle = open_bundle(root)
    ids = random_ids(LENGTH)
    with torch.no_grad():
        expected = trained(torch.tensor([ids])).logits[0].numpy()
    decoder = open_decoder(bundle, threads=1)
    decoder.use_adapter(AdapterStore(root / "adapters", bundle.base).load("anna"))
    np.testing.assert_allclose(decoder.extend(ids, rows=LENGTH), expected, atol=5e-4, rtol=0)


def test_int8_rounds_where_there_is_no_calibration_and_says_so(shape, tmp_path):
    directory, _ = shape("gemma3")
    manifest = export_onnx(directory, tmp_path / "bundle", "int8").manifest
    assert "rounded" in manifest.decoder.quantization.description
    ids = random_ids(LENGTH)
    expected = torch_logits(directory, ids)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=LENGTH)
    assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 0.06
    with pytest.raises(UnsupportedQuantizationError, match="gemma3_text"):
        export_onnx(directory, tmp_path / "other", "int4")


def test_longrope_ends_the_context_where_it_is_right(shape, tmp_path):
    directory, bundle = shape("phi3-longrope")
    assert open_bundle(bundle).manifest.context_length == 128
    with pytest.raises(UnsupportedModelError, match=r"longrope.*`context_length` to 128"):
        export_onnx(directory, tmp_path / "bundle", "fp32", context_length=129)


def test_the_text_part_of_a_multimodal_model_is_exported(tmp_path):
    text = {**SHAPES["gemma3"], "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**text, "max_position_embeddings": 512, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.15 if "norm" not in name else 0.2)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "bundle", "fp32")
    ids = random_ids(LENGTH)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=LENGTH)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_ropes_that_are_given_by_kind_of_layer_are_both_read(shape, tmp_path):
    """As transformers 5 saves Gemma 3."""
    directory, bundle = shape("gemma3-scaled")
    config = json.loads((directory / "config.json").read_text())
    if "rope_parameters" not in config:
        config["rope_parameters"] = {
            "full_attention": {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")},
        }
    (tmp_path / "model").mkdir()
    for file in directory.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    export_onnx(tmp_path / "model", tmp_path / "bundle", "fp32")
    ids = random_ids(LENGTH)
    expected = decoder_of(bundle).extend(ids, rows=LENGTH)
    np.testing.assert_array_equal(decoder_of(tmp_path / "bundle").extend(ids, rows=LENGTH), expected)
