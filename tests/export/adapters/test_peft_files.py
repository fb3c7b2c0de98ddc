"""What PEFT saved is read as PEFT itself would apply it, or refused with the reason."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM

from edge_runtime.bundle.reader import open_bundle
from export.adapters.peft_files import read_peft_config, read_peft_matrices
from export.errors import AdapterExportError
from export.onnx.export import export_onnx
from tests.support.tiny_models import make_model

# PEFT has something to say about most of the odd configurations here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("peft") / "model", model_type="llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def decoder(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("peft-bundle") / "bundle"
    export_onnx(base, out, "fp32")
    return open_bundle(out).manifest.decoder


def trained(base, **config):
    """A PEFT model whose matrices are random, as if it had been trained."""
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return model


def read(directory, decoder):
    return read_peft_matrices(directory, read_peft_config(directory), decoder)


def changes(directory, base):
    """The oracle: what PEFT adds to each weight as it merges a saved adapter, (in_features, out_features) by place."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    after = PeftModel.from_pretrained(model, directory).to(torch.float64).merge_and_unload().state_dict()
    found = {}
    for name, weight in after.items():
        difference = (weight - before[name]).numpy().T
        if difference.any():
            parts = name.split(".")
            found[int(parts[2]), parts[4]] = difference
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": LINEAR, "r": 16, "lora_alpha": 3},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(1)\.self_attn\.(q|o)_proj"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"use_rslora": True, "r": 9},
        {"target_modules": LINEAR, "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 7}},
        {"target_modules": LINEAR, "alpha_pattern": {r"layers\.1\..*": 1, "k_proj": 64.5}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.1, "init_lora_weights": False},
    ],
)
def test_the_products_are_what_peft_adds_to_the_weights(config, base, decoder, tmp_path):
    trained(base, **config).save_pretrained(tmp_path)
    matrices = read(tmp_path, decoder)
    expected = changes(tmp_path, base)
    assert matrices.keys() == expected.keys()
    for place, (a, b) in matrices.items():
        np.testing.assert_allclose(a.astype(np.float64) @ b, expected[place], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_matrices_of_any_floating_type_are_read(dtype, base, decoder, tmp_path):
    trained(base).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in load_file(path).items()}
    save_torch(tensors, path)
    found = read(tmp_path, decoder)
    for (layer, projection), (a, _) in found.items():
        name = f"base_model.model.model.layers.{layer}.self_attn.{projection}.lora_A.weight"
        np.testing.assert_array_equal(a.T, tensors[name].float().numpy())


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("base_model.model.", ""),
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: "_orig_mod." + name,
        lambda name: "module." + name,
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
        lambda name: name.replace("layers.", "layers.").replace("_proj.lora", "_proj._fsdp_wrapped_module.lora"),
        lambda name: name.replace("model.model.layers", "model.model.language_model.layers"),
    ],
)
def test_names_with_wrappers_mean_the_same_place(rename, base, decoder, tmp_path):
    trained(base).save_pretrained(tmp_path)
    expected = read(tmp_path, decoder)
    path = tmp_path / "adapter_model.safetensors"
    save_file({rename(name): array for name, array in load_file(path).items()}, path)
    found = read(tmp_path, decoder)
    assert found.keys() == expected.keys()
    for place, pair in expected.items():
        for mine, theirs in zip(found[place], pair, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"init_lora_weights": "pissa"}, "pissa.*path_initial_model"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"trainable_token_indices": [1, 2]}, "embeddings"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "replicated"),
    ],
)
def test_other_methods_that_peft_saves_are_refused_by_name(config, words, base, decoder, tmp_path):
    trained(base, **config).save_pretrained(tmp_path)
    with pytest.raises(AdapterExportError, match=words) as caught:
        read(tmp_path, decoder)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("target", [["embed_tokens"], ["q_proj", "lm_head"]])
def test_matrices_on_embedding_and_head_are_refused(target, base, decoder, tmp_path):
    trained(base, target_modules=target).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(AdapterExportError, match=r"embedding|head"):
        read(tmp_path, decoder)


def edit(directory, **fields):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "Only LoRA.*IA3"),
        ({"peft_type": None}, "Only LoRA"),
        ({"fan_in_fan_out": True}, "Conv1D"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_field_of_the_future": {"x": 1}}, "a_field_of_the_future"),
        ({"r": 0}, "not valid"),
        ({"r": "8"}, "not valid"),
        ({"r": True}, "not valid"),
        ({"r": 5000}, "not valid"),
        ({"lora_alpha": None}, "not valid"),
        ({"lora_alpha": float("nan")}, "not valid"),
        ({"lora_alpha": 10**400}, "not valid"),
        ({"rank_pattern": {"q_proj": 0}}, "not valid"),
        ({"rank_pattern": [1]}, "not valid"),
        ({"alpha_pattern": {"q_proj": "2"}}, "not valid"),
        ({"alpha_pattern": {"(": 2}}, "pattern"),
        ({"r": 8}, "do not fit"),
        ({"rank_pattern": {"v_proj": 2}}, "do not fit"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "no matrices for o_proj"),
    ],
)
def test_configurations_that_do_not_describe_the_matrices_are_refused(fields, words, base, decoder, tmp_path):
    trained(base).save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(AdapterExportError, match=words):
        read(tmp_path, decoder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_configuration_is_refused(content, base, decoder, tmp_path):
    trained(base).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterExportError, match=r"adapter_config\.json"):
        read(tmp_path, decoder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "init_lora_weights", "x")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_configuration_is_read_or_refused_and_nothing_else_happens(fields, base, decoder, tmp_path):
    if not (tmp_path / "adapter_config.json").exists():
        trained(base).save_pretrained(tmp_path)
        (tmp_path / "whole.json").write_text((tmp_path / "adapter_config.json").read_text())
    whole = json.loads((tmp_path / "whole.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(whole | fields))
    try:
        assert read(tmp_path, decoder)
    except AdapterExportError as error:
        assert str(tmp_path) in str(error) or "pattern" in str(error)


NAME = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAME + "lora_A.weight": np.full((4, 64), np.nan, np.float32)}, "not finite.*layer 0, q_proj|q_proj.*finite"),
        ({NAME + "lora_B.weight": np.full((64, 4), np.inf, np.float32)}, "finite"),
        ({NAME + "lora_A.weight": np.full((4, 64), 1e300)}, "finite"),
        ({NAME + "lora_A.weight": np.ones((4, 32), np.float32)}, "do not fit"),
        ({NAME + "lora_B.weight": np.ones((32, 4), np.float32)}, "do not fit"),
        ({NAME + "lora_A.weight": np.ones((4, 64, 1, 1), np.float32)}, "do not fit"),
        ({NAME + "lora_A.weight": np.ones((4, 64), np.int32)}, "not floating point"),
        ({NAME + "lora_A.weight": None}, "half a pair"),
        ({NAME + "lora_A.other.weight": np.ones((4, 64), np.float32)}, "two matrices"),
        ({NAME.replace("layers.0", "layers.2") + "lora_A.weight": np.ones((4, 64), np.float32)}, "does not fit"),
        ({NAME.replace("q_proj", "z_proj") + "lora_A.weight": np.ones((4, 64), np.float32)}, "does not fit"),
        ({NAME.replace("model.model.layers", "model.encoder.layers") + "lora_A.weight": np.ones(4)}, "counterpart"),
        ({NAME + "lora_magnitude_vector.weight": np.ones(64, np.float32)}, "DoRA"),
        ({NAME + "bias": np.ones(64, np.float32)}, "biases"),
        ({"base_model.model.lm_head.weight": np.ones(64, np.float32)}, "head"),
    ],
)
def test_matrices_that_do_not_fit_are_refused_by_name(change, words, base, decoder, tmp_path):
    trained(base).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path) | change
    save_file({name: array for name, array in tensors.items() if array is not None}, path)
    with pytest.raises(AdapterExportError, match=words):
        read(tmp_path, decoder)


def test_weights_that_are_missing_cut_short_or_of_the_older_format_are_refused(base, decoder, tmp_path):
    trained(base).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:100], b"garbage" * 9):
        path.write_bytes(content)
        with pytest.raises(AdapterExportError, match="can't be read"):
            read(tmp_path, decoder)
    path.unlink()
    with pytest.raises(AdapterExportError, match="missing"):
        read(tmp_path, decoder)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterExportError, match=r"older adapter_model\.bin"):
        read(tmp_path, decoder)
    with pytest.raises(AdapterExportError, match="no PEFT adapter here"):
        read(tmp_path / "nowhere", decoder)
