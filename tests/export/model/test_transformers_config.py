"""A checkpoint that either version of transformers saved is loaded right by the installed one, or refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from export.errors import ExportError, UnsupportedModelError
from export.model.rope import rope_from_config
from export.model.transformers_config import transformers_config
from tests.export.model.test_rope import GEMMA_4, GEMMA_5, GEMMA_TYPES, LLAMA3, YARN, saved_by_4, saved_by_5
from tests.support.tiny_models import SHAPE

VERSION = int(transformers.__version__.partition(".")[0])


def written(directory, config):
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("scaling", [None, LLAMA3, YARN], ids=["default", "llama3", "yarn"])
@pytest.mark.parametrize("saved", [saved_by_4, saved_by_5], ids=["saved by 4", "saved by 5"])
def test_the_installed_transformers_computes_the_saved_positions(saved, scaling, tmp_path):
    config = saved(500_000.0, scaling)
    rotary = AutoModelForCausalLM.from_config(transformers_config(written(tmp_path, config))).model.rotary_emb
    rope = rope_from_config(config, 16, "config.json")
    assert rotary.inv_freq.tolist() == list(rope.inverse_frequencies)
    assert rotary.attention_scaling == pytest.approx(rope.attention_factor)


@pytest.mark.parametrize("config", [GEMMA_4, GEMMA_5], ids=["saved by 4", "saved by 5"])
def test_positions_by_type_of_layer_are_translated(config, tmp_path):
    model = AutoModelForCausalLM.from_config(transformers_config(written(tmp_path, config))).model
    if VERSION >= 5:
        found = [getattr(model.rotary_emb, f"{kind}_inv_freq") for kind in GEMMA_TYPES]
    else:
        found = [model.rotary_emb_local.inv_freq, model.rotary_emb.inv_freq]
    for kind, frequencies in zip(GEMMA_TYPES, found, strict=True):
        assert frequencies.tolist() == list(rope_from_config(config, 32, "config.json", kind).inverse_frequencies)


@pytest.mark.parametrize("family", ["stablelm", "gpt_neox", "phi"])
def test_a_part_of_each_head_is_rotated(family, tmp_path):
    # The oracle is the older form, which both versions read.
    older = {"stablelm": {"rope_theta": 5e4, "partial_rotary_factor": 0.5},
             "gpt_neox": {"rotary_emb_base": 5e4, "rotary_pct": 0.5},
             "phi": {"rope_theta": 5e4, "partial_rotary_factor": 0.5}}[family]  # fmt: skip
    expected = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SHAPE, "model_type": family, **older}))
    newer = {"rope_theta": 5e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    config = transformers_config(written(tmp_path, {**SHAPE, "model_type": family, "rope_parameters": newer}))
    found = AutoModelForCausalLM.from_config(config)
    frequencies = [dict(model.named_buffers()) for model in (expected, found)]
    name = next(name for name in frequencies[0] if name.endswith("rotary_emb.inv_freq"))
    assert len(frequencies[0][name]) == 4
    assert torch.equal(frequencies[0][name], frequencies[1][name])


def test_what_the_installed_transformers_can_not_express_is_refused_or_right(tmp_path):
    local = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    scaled = {**GEMMA_5["rope_parameters"], "sliding_attention": local}
    directory = written(tmp_path, {**GEMMA_5, "rope_parameters": scaled})
    if VERSION >= 5:
        assert transformers_config(directory).rope_parameters["sliding_attention"]["factor"] == 2.0
    else:
        with pytest.raises(UnsupportedModelError, match="Install transformers 5"):
            transformers_config(directory)


def test_a_damaged_configuration_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"config\.json"):
        transformers_config(written(tmp_path, {**SHAPE, "model_type": "llama", "hidden_size": "wide"}))
