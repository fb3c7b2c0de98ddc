"""Rotary positions are read from both forms of configuration as transformers computes them; the rest is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.errors import SourceError, UnsupportedModelError
from export.model.architecture import from_hf_config
from export.model.rope import rope_from_config
from tests.support.tiny_models import SHAPE

WHERE = "config.json"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "type, as the first versions wrote it": {"type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn with all settings": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
    "yarn as DeepSeek has it": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn that isn't rounded": {**YARN, "truncate": False},
}


def saved_by_4(theta: float, scaling: dict | None, **more) -> dict:
    # A copy, because transformers 5 writes into the dictionary that it is given.
    return {**SHAPE, "model_type": "llama", "rope_theta": theta, "rope_scaling": copy.deepcopy(scaling), **more}


def saved_by_5(theta: float, scaling: dict | None, **more) -> dict:
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    if "type" in parameters:
        parameters["rope_type"] = parameters["type"]
    return {**SHAPE, "model_type": "llama", "rope_parameters": parameters, **more}


def of_transformers(config: dict) -> tuple[np.ndarray, float]:
    """The frequencies of the installed transformers, which reads the older form in all versions."""
    rotary = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config))).model.rotary_emb
    return rotary.inv_freq.numpy(), rotary.attention_scaling


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_both_forms_give_the_frequencies_of_transformers(scaling, theta, head_dim):
    older, newer = (saved(theta, SCALINGS[scaling], head_dim=head_dim) for saved in (saved_by_4, saved_by_5))
    expected, factor = of_transformers(older)
    for config in (older, newer):
        rope = rope_from_config(config, head_dim, WHERE)
        np.testing.assert_array_equal(np.array(rope.inverse_frequencies, np.float32), expected)
        assert rope.attention_factor == pytest.approx(factor)
    assert from_hf_config(newer, WHERE).rope == from_hf_config(older, WHERE).rope


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_what_the_installed_transformers_saves_is_read(family, tmp_path):
    # Version 4.57 saves one form, version 5 the other.
    config = AutoConfig.for_model(**{**SHAPE, "model_type": family, "head_dim": 16, "rope_theta": 300_000.0})
    expected = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq.numpy()
    found = from_hf_config(config.to_dict(), WHERE).rope
    np.testing.assert_array_equal(np.array(found.inverse_frequencies, np.float32), expected)
    assert found.inverse_frequencies[1] == pytest.approx(300_000.0**-0.125)


@pytest.mark.parametrize(
    ("family", "theta"),
    [
        ("llama", 1e4),
        ("qwen3", 1e4),
        ("gemma2", 1e4),
        ("olmo2", 1e4),
        ("granite", 1e4),
        ("smollm3", 2e6),
        ("lfm2", 1e6),
    ],
)
def test_a_base_that_the_file_leaves_out_is_the_default_of_the_family(family, theta):
    saved = AutoConfig.for_model(**{**SHAPE, "model_type": family}).to_dict()
    # The oracle: version 4.57 has the default as an attribute, version 5 among the parameters.
    assert (saved.get("rope_parameters") or saved)["rope_theta"] == theta
    rope = rope_from_config({**SHAPE, "model_type": family}, 16, WHERE)
    assert rope.inverse_frequencies[1] == pytest.approx(theta**-0.125)


def test_a_part_of_each_head_is_rotated():
    config = {**SHAPE, "model_type": "stablelm", "partial_rotary_factor": 0.5}
    expected, _ = of_transformers({**config, "rope_theta": 10_000.0})
    inside = {"rope_theta": 10_000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    for form in (config, {**SHAPE, "model_type": "stablelm", "rope_parameters": inside}):
        found = rope_from_config(form, 16, WHERE).inverse_frequencies
        np.testing.assert_array_equal(np.array(found, np.float32), expected)
    assert len(rope_from_config({**SHAPE, "model_type": "stablelm"}, 16, WHERE).inverse_frequencies) == 2


GEMMA_TYPES = ["sliding_attention", "full_attention"]
GEMMA_4 = {
    **SHAPE,
    "model_type": "gemma3_text",
    "head_dim": 32,
    "layer_types": GEMMA_TYPES,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 20_000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
GEMMA_5 = {
    **{name: value for name, value in GEMMA_4.items() if not name.startswith("rope_")},
    "rope_parameters": {
        "sliding_attention": {"rope_theta": 20_000.0, "rope_type": "default"},
        "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "linear", "factor": 8.0},
    },
}


@pytest.mark.parametrize("config", [GEMMA_4, GEMMA_5], ids=["saved by 4", "saved by 5"])
def test_each_type_of_layer_has_the_rope_of_transformers(config):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(GEMMA_4))).model
    # Version 4.57 has a module for each type, version 5 one module with a buffer for each.
    if hasattr(model, "rotary_emb_local"):
        expected = {"sliding_attention": model.rotary_emb_local.inv_freq, "full_attention": model.rotary_emb.inv_freq}
    else:
        expected = {kind: getattr(model.rotary_emb, f"{kind}_inv_freq") for kind in GEMMA_TYPES}
    for kind, frequencies in expected.items():
        found = rope_from_config(config, 32, WHERE, layer_type=kind)
        np.testing.assert_array_equal(np.array(found.inverse_frequencies, np.float32), frequencies.numpy())
    assert not torch.equal(*expected.values())


def test_layers_that_differ_are_no_single_rope():
    with pytest.raises(UnsupportedModelError, match=r"differ by type of layer.*sliding_attention, full_attention"):
        rope_from_config(GEMMA_5, 32, WHERE)
    same = {kind: {"rope_theta": 5e5, "rope_type": "default"} for kind in GEMMA_TYPES}
    config = {**GEMMA_5, "rope_parameters": same}
    assert rope_from_config(config, 32, WHERE) == rope_from_config(config, 32, WHERE, layer_type="full_attention")
    # A type without layers does not count.
    one = {**GEMMA_5, "layer_types": ["full_attention", "full_attention"]}
    assert rope_from_config(one, 32, WHERE) == rope_from_config(GEMMA_5, 32, WHERE, layer_type="full_attention")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (saved_by_5(1e4, {"rope_type": "dynamic", "factor": 2.0}), "'dynamic'"),
        (saved_by_5(1e4, {"rope_type": "proportional"}), "'proportional'"),
        (saved_by_4(1e4, {"type": "su", "factor": 2.0}), "'su'"),
        (saved_by_5(1e4, {**YARN, "llama_4_scaling_beta": 0.1}), "'llama_4_scaling_beta'"),
        (saved_by_5(1e4, {"mrope_section": [4, 4]}), "'mrope_section'"),
        (saved_by_4(1e4, None, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}), "two values .*rope_theta"),
        ({**saved_by_5(1e4, YARN), "rope_scaling": LLAMA3}, "contradict each other"),
        ({**saved_by_5(1e4, YARN), "original_max_position_embeddings": 64}, "two values"),
        (saved_by_4(1e4, {"factor": 2.0}), "not said how"),
        (saved_by_4(1e4, {"type": "linear", "rope_type": "yarn", "factor": 2.0}), "at once"),
        (saved_by_4(1e4, {"rope_type": "linear"}), "need the setting 'factor'"),
        (saved_by_4(1e4, {"rope_type": "linear", "factor": "two"}), "not valid"),
        (saved_by_4(1e4, {"rope_type": "linear", "factor": 0.0}), "not valid|no finite"),
        (saved_by_4(1e4, ["linear"]), "not an object"),
        ({**GEMMA_5, "rope_parameters": {**GEMMA_5["rope_parameters"], "rope_theta": 1e4}}, "some are not"),
        ({"model_type": "cohere", **SHAPE}, "names no base"),  # its default is not the same in all versions
    ],
)
def test_what_is_unknown_missing_or_contradictory_is_refused(config, words):
    with pytest.raises((UnsupportedModelError, SourceError), match=words):
        rope_from_config(config, 16, WHERE)
