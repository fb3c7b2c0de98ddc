"""Configurations are read as transformers reads them, and features that the graph lacks are rejected."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from export.errors import ExportError, SourceError, UnsupportedModelError
from export.model.architecture import LLAMA_FAMILY, from_hf_config
from export.onnx.export import export_onnx
from tests.support.tiny_models import FAMILIES, SHAPE, decoder_of, make_model, random_ids, torch_logits


@pytest.mark.parametrize("name", FAMILIES)
def test_rotary_frequencies_are_those_of_the_model(name):
    config = AutoConfig.for_model(**{**SHAPE, **FAMILIES[name]})
    rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    rope = from_hf_config(config.to_dict(), "config.json").rope
    np.testing.assert_array_equal(np.array(rope.inverse_frequencies, np.float32), rotary.inv_freq.numpy())
    assert rope.attention_factor == pytest.approx(rotary.attention_scaling)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "part of each head"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"model_type": "gemma", "final_logit_softcapping": 30.0}, "caps the logits"),
        ({"model_type": "gemma", "attn_logit_softcapping": 50.0}, "caps attention"),
        ({"model_type": "mistral", "num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "llama", "hidden_act": "relu"}, "'relu'"),
        ({"model_type": "mamba"}, "'mamba'"),
        ({}, "'None'"),
    ],
)
def test_what_the_graph_can_not_do_is_refused(config, words):
    with pytest.raises(UnsupportedModelError, match=words):
        from_hf_config({**SHAPE, **config}, "config.json")


def test_gemma_means_the_approximation_by_gelu():
    # Its first files say "gelu"; transformers 5 reads it as the approximation that the weights were trained with.
    assert (
        from_hf_config({**SHAPE, "model_type": "gemma", "hidden_act": "gelu"}, "config.json").activation == "gelu_tanh"
    )
    assert from_hf_config({**SHAPE, "model_type": "llama", "hidden_act": "gelu"}, "config.json").activation == "gelu"


@pytest.mark.parametrize("family", LLAMA_FAMILY)
def test_a_key_that_the_reader_does_not_know_is_an_error(family):
    config = {**SHAPE, "model_type": family, "attention_twist": 2}
    with pytest.raises(UnsupportedModelError, match="does not know: 'attention_twist'"):
        from_hf_config(config, "config.json")
    plain = {**config, "attention_twist": None, "transformers_version": "5.23.0", "torch_dtype": "bfloat16"}
    if family == "ministral":
        plain["head_dim"] = 16
    if family == "minicpm":
        plain |= {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    assert from_hf_config(plain, "config.json").family == family


@pytest.mark.parametrize("family", sorted(set(LLAMA_FAMILY) - {"minicpm"}))
def test_the_keys_that_transformers_saves_are_all_known(family):
    config = AutoConfig.for_model(**{**SHAPE, "model_type": family, "head_dim": 16}).to_diff_dict()
    assert from_hf_config({**config, "model_type": family}, "config.json").layers == 2
    whole = AutoConfig.for_model(**{**SHAPE, "model_type": family, "head_dim": 16}).to_dict()
    assert from_hf_config(whole, "config.json").layers == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "stablelm", "qk_layernorm": True}, "each head has a layer norm"),
        ({"model_type": "stablelm", "use_parallel_residual": True}, "in parallel"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "both directions"),
        ({"model_type": "llama", "pretraining_tp": 2}, "tensor-parallel"),
    ],
)
def test_known_keys_with_values_that_the_graph_can_not_do_are_refused_by_name(config, words):
    with pytest.raises(UnsupportedModelError, match=words):
        from_hf_config({**SHAPE, **config}, "config.json")


def test_a_refusal_loads_no_deep_learning_library():
    code = (
        "import sys\nfrom export.errors import UnsupportedModelError\n"
        "from export.model.architecture import from_hf_config\n"
        "try:\n    from_hf_config({'model_type': 'llama', 'attention_twist': 1}, 'x')\n"
        "except UnsupportedModelError:\n    assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "else:\n    raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("broken", [{"hidden_size": "wide"}, {"num_key_value_heads": 3}, {"num_hidden_layers": 0}])
def test_a_configuration_that_makes_no_sense_is_refused(broken):
    with pytest.raises(ExportError):
        from_hf_config({**SHAPE, "model_type": "llama", **broken}, "config.json")


def test_a_sliding_window_bounds_the_context_only_where_the_graph_can_not_slide():
    sliding = from_hf_config({**SHAPE, "model_type": "mistral", "sliding_window": 256}, "config.json")
    assert sliding.windows == (256, 256)
    assert sliding.with_context(None).context_length == 1024
    assert sliding.with_context(None, sliding=False).context_length == 256
    assert sliding.with_context(200, sliding=False).context_length == 200
    with pytest.raises(UnsupportedModelError, match="`context_length` to 256"):
        sliding.with_context(512, sliding=False)
    with pytest.raises(UnsupportedModelError, match=r"`context_length` must be in 1 \.\. 1,024"):
        sliding.with_context(4096)


def test_a_sliding_window_that_is_switched_off_does_not_count():
    config = {**SHAPE, "model_type": "qwen2", "sliding_window": 256, "use_sliding_window": False}
    assert from_hf_config(config, "config.json").windows == (None, None)


def test_tensors_that_the_graph_would_leave_out_are_refused(tmp_path):
    # A Qwen2 with its biases, labelled as a family without biases.
    model = make_model(tmp_path / "model", model_type="qwen2")
    config = json.loads((model / "config.json").read_text())
    own = ("layer_types", "max_window_layers", "use_sliding_window", "sliding_window")
    kept = {name: value for name, value in config.items() if name not in own}
    (model / "config.json").write_text(json.dumps({**kept, "model_type": "llama"}))
    with pytest.raises(UnsupportedModelError, match=r"q_proj\.bias|k_proj\.bias"):
        export_onnx(model, tmp_path / "bundle", "fp32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_missing_or_cut_off_weight_file_is_refused(tmp_path):
    model = make_model(tmp_path / "model", model_type="llama")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="can't be read"):
        export_onnx(model, tmp_path / "bundle", "fp32")
    weights.unlink()
    with pytest.raises(SourceError, match="no safetensors files"):
        export_onnx(model, tmp_path / "bundle", "fp32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_sharded_half_precision_weights_are_read(tmp_path):
    import torch

    from tests.support.tiny_models import decoder_of, random_ids, torch_logits

    model = make_model(tmp_path / "model", model_type="llama", tie_word_embeddings=False)
    half = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half", max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "half" / name).write_bytes((model / name).read_bytes())
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    export_onnx(tmp_path / "half", tmp_path / "bundle", "fp32")
    ids = random_ids(30)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=30)
    np.testing.assert_allclose(found, torch_logits(tmp_path / "half", ids), atol=3e-4)


@pytest.mark.parametrize(
    "other",
    ["model_old.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors"],
)
def test_the_weights_are_those_of_the_file_that_transformers_reads(other, tmp_path):
    model = make_model(tmp_path / "model", model_type="llama")
    wrong = make_model(tmp_path / "wrong", model_type="llama", rms_norm_eps=1e-3)  # other random weights
    (model / other).write_bytes((wrong / "model.safetensors").read_bytes())
    ids = random_ids(20)
    export_onnx(model, tmp_path / "bundle", "fp32")
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=20)
    np.testing.assert_allclose(found, torch_logits(model, ids), atol=3e-4)
    (model / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=f"{other}, which transformers does not read"):
        export_onnx(model, tmp_path / "other", "fp32")
