"""Every export is compared with transformers: what our reader or graph gets wrong is refused and not written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import export.model.hf_source as hf_source
from edge_runtime.bundle.reader import open_bundle
from export.check import checker
from export.check.check import check_twin, family_twin
from export.check.twin import twin_config
from export.errors import ExportError, SourceError, WrongExportError
from export.model.hf_source import HFSource
from export.model.rope import Rope
from export.onnx.export import export_onnx
from export.onnx.trial import opened_graph
from tests.support.tiny_models import FAMILIES, SHAPE, decoder_of, make_model, random_ids, torch_logits

# What a reader could get wrong without any error, each in a family where it matters.
MISREADINGS = {
    "a tenth of the epsilon": ("llama-tied", lambda a: replace(a, norm_eps=a.norm_eps / 10)),
    "rotary base": ("llama-tied", lambda a: replace(a, rope=_rope(a, lambda f: f**1.1))),
    "a scaling ignored": ("llama3-rope", lambda a: replace(a, rope=Rope(_plain(a)))),
    "a linear scaling ignored": ("llama-linear-rope", lambda a: replace(a, rope=Rope(_plain(a)))),
    "attention factor": ("qwen2-yarn", lambda a: replace(a, rope=Rope(a.rope.inverse_frequencies))),
    "activation": ("llama-tied", lambda a: replace(a, activation="gelu")),
    "the other gelu": ("gemma", lambda a: replace(a, activation="gelu")),
    "norm offset": ("gemma", lambda a: replace(a, norm_offset=0.0)),
    "embedding scale": ("gemma", lambda a: replace(a, embedding_scale=1.0)),
    "head norms": ("qwen3", lambda a: replace(a, head_norms="none")),
    "biases": ("qwen2", lambda a: replace(a, qkv_bias=False)),
    "other biases": ("llama-untied-biases", lambda a: replace(a, mlp_bias=False)),
}


@pytest.mark.parametrize("what", MISREADINGS)
def test_what_the_reader_gets_wrong_is_found_and_nothing_is_written(what, family_model, tmp_path, monkeypatch):
    family, wrong = MISREADINGS[what]
    read = hf_source.from_hf_config
    monkeypatch.setattr(hf_source, "from_hf_config", lambda config, where: wrong(read(config, where)))
    # Also a reader that no longer misses a tensor must be found out by what it computes.
    monkeypatch.setattr("export.onnx.export.check_names", lambda source, expected: None)
    with pytest.raises(WrongExportError, match="does not compute what transformers") as error:
        export_onnx(family_model(family), tmp_path / "bundle", "int8")
    if "embedding" not in what:
        assert "the first layer that differs is layer 0" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_read_wrongly_are_found_in_the_real_model(family_model, tmp_path, monkeypatch):
    read = HFSource.read

    def swapped(source, name):
        values = read(source, name)
        # The twin has other weights, and is in a directory of its own.
        right = "twin" in str(source.path) or name != "model.layers.1.self_attn.q_proj.weight"
        return values if right else np.roll(values, 8, axis=0)

    monkeypatch.setattr(HFSource, "read", swapped)
    with pytest.raises(WrongExportError, match=r"On a text of \d+ tokens.*(the last layer, 1, is right)"):
        export_onnx(family_model("llama-tied"), tmp_path / "bundle", "fp32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["fp32", "int8", "int4"])
def test_the_bundle_says_how_it_was_compared(scheme, family_bundle):
    checked = open_bundle(family_bundle("llama-tied", scheme)).manifest.decoder.checked
    assert checked.reference.startswith("transformers ")
    assert checked.tokens == 64
    assert checked.difference <= checked.tolerance
    assert checked.difference < 1e-5 if scheme == "fp32" else checked.difference > 1e-4


def test_an_export_without_the_check_says_so_in_the_manifest(family_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checker, "check_twin", lambda *_: pytest.fail("it was checked"))
    exported = export_onnx(family_model("llama-tied"), tmp_path / "bundle", "fp32", check=False)
    assert exported.manifest.decoder.checked is None
    assert json.loads((tmp_path / "bundle/manifest.json").read_bytes())["decoders"][0]["checked"] is None


def test_a_twin_keeps_what_decides_how_a_model_computes():
    config = {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_hidden_layers": 4,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 4096,
        "use_sliding_window": True,
        "max_window_layers": 2,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 151645,
    }
    small = twin_config(config)
    assert small["num_hidden_layers"] == 3  # both kinds of layers
    assert small["layer_types"] == config["layer_types"][:3]
    assert small["sliding_window"] < 256
    changed = {"num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size", "vocab_size"}
    changed |= {"num_hidden_layers", "layer_types", "sliding_window", "eos_token_id"}
    assert {name: small[name] for name in config if name not in changed} == {
        name: value for name, value in config.items() if name not in changed
    }


def test_minicpm_is_granite_with_other_names(tmp_path):
    """Transformers has no MiniCPM of its own; Granite computes the same from other names."""
    scales = {"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 2**0.5, "logits_scaling": 64 / 16}
    granite = make_model(tmp_path / "granite", model_type="granite", attention_multiplier=16**-0.5, **scales)
    own = {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    config = {**SHAPE, **own, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
    saved = json.loads((granite / "config.json").read_bytes())
    config |= {"rms_norm_eps": saved["rms_norm_eps"], "tie_word_embeddings": saved["tie_word_embeddings"]}
    model = shutil.copytree(granite, tmp_path / "minicpm")
    (model / "config.json").write_text(json.dumps(config))
    exported = export_onnx(model, tmp_path / "bundle", "fp32")
    assert exported.manifest.model.architecture == "minicpm"
    ids = random_ids(60)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=60)
    np.testing.assert_allclose(found, torch_logits(granite, ids), atol=3e-4)
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "scale_depth"}))
    with pytest.raises(SourceError, match="scale_depth"):
        export_onnx(model, tmp_path / "other", "fp32")


CHANGED_FAMILIES = ["llama-tied", "mistral", "qwen2", "qwen3", "gemma"]
# Changes that people's configurations have, in any combination; most make another model, some none that exists.
CHANGES = {
    "rope_theta": [500.0, 1e6, None],
    "rope_scaling": [
        None,
        {"rope_type": "linear", "factor": 2.0},
        {"type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
        },
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "beta_fast": 16, "truncate": False},
        {"rope_type": "unheard-of", "factor": 2.0},
    ],
    "rms_norm_eps": [1e-5, 1e-3],
    "hidden_act": ["gelu", "gelu_pytorch_tanh", "relu"],
    "head_dim": [16, 32, None],
    "num_key_value_heads": [1, 4],
    "attention_bias": [True, False],
    "mlp_bias": [True],
    "tie_word_embeddings": [True, False],
    "sliding_window": [64, None],
    "use_sliding_window": [True],
    "max_window_layers": [1],
    "layer_types": [["sliding_attention", "full_attention"], ["full_attention", "full_attention"]],
    "partial_rotary_factor": [0.5],
    "pretraining_tp": [2],
    "num_local_experts": [4],
    "final_logit_softcapping": [30.0],
    "max_position_embeddings": [256],
}
MUTATIONS = st.dictionaries(st.sampled_from(sorted(CHANGES)), st.integers(0, 7), max_size=4)
# Keys that an older or a shortened configuration leaves out, so that the family's defaults count.
DROPPED = st.sets(
    st.sampled_from(
        [
            "rope_parameters",
            "rope_theta",
            "rms_norm_eps",
            "hidden_act",
            "head_dim",
            "tie_word_embeddings",
            "layer_types",
        ]
    ),
    max_size=2,
)
ADDED = st.sampled_from([{}, {"attention_multiplier": 0.5}, {"logits_scaling": 8.0}, {"a_new_key": 1}])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(family=st.sampled_from(CHANGED_FAMILIES), mutation=MUTATIONS, dropped=DROPPED, added=ADDED)
def test_a_changed_configuration_is_exported_right_or_refused(family, mutation, dropped, added, tmp_path):
    _check_mutation(family, mutation, dropped, added, tmp_path)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(family=st.sampled_from(CHANGED_FAMILIES), mutation=MUTATIONS, dropped=DROPPED, added=ADDED)
def test_two_hundred_changed_configurations_are_exported_right_or_refused(family, mutation, dropped, added, tmp_path):
    _check_mutation(family, mutation, dropped, added, tmp_path)


def _check_mutation(family, mutation, dropped, added, tmp_path):
    config = FAMILIES[family] | {name: CHANGES[name][index % len(CHANGES[name])] for name, index in mutation.items()}
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    try:
        model = make_model(tmp_path / "model", **config)
    except Exception:  # transformers has no such model either, and says so in many ways
        return
    raw = json.loads((model / "config.json").read_bytes())
    raw = {name: value for name, value in raw.items() if name not in dropped} | added
    try:
        assert check_twin(raw, family_twin(None, opened_graph), model) > 0
    except WrongExportError:
        raise  # what our reader accepts, our graph must compute
    except ExportError:
        return


def _rope(architecture, change):
    return Rope(tuple(map(change, architecture.rope.inverse_frequencies)), architecture.rope.attention_factor)


def _plain(architecture):
    return tuple(10000.0 ** (-2 * i / architecture.head_dim) for i in range(architecture.head_dim // 2))
