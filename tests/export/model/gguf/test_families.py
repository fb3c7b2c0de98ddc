"""GGUF files of every family give the decoder of their Hugging Face model; what is not supported is refused early."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from export.errors import UnsupportedModelError
from export.hf_directory import write_hf_directory
from export.model.gguf.source import GGUFSource
from export.model.hf_source import HFDirectory
from export.onnx.export import export_onnx
from tests.support.tiny_families import SHAPES
from tests.support.tiny_gguf import write_family_gguf
from tests.support.tiny_models import FAMILIES, decoder_of, make_model, random_ids, torch_logits

# llama.cpp itself agrees with transformers to 1e-5 on files written like these (Gemma: 4e-3, its GELU is a table).
FILES = {
    "llama3-rope": FAMILIES["llama3-rope"],
    "gemma": FAMILIES["gemma"],
    "gemma2": {**SHAPES["gemma2"], "query_pre_attn_scalar": 32},
    "gemma3": SHAPES["gemma3"],
    "phi3": SHAPES["phi3"],
    "phi3-partial": SHAPES["phi3-partial"],
    "phi3-longrope": SHAPES["phi3-longrope"],
    "olmo2": SHAPES["olmo2"],
    "smollm3": SHAPES["smollm3"],
    "granite": SHAPES["granite"],
    "stablelm-biases": SHAPES["stablelm-biases"],
    "heads-of-24": SHAPES["heads-of-24"],
}


@pytest.fixture
def file_of(tmp_path, monkeypatch):
    """Write a tiny model and its file, whose tokenizer is taken from the model's directory."""

    def write(config, kinds=(Kind.F32,), architecture=""):
        model = make_model(tmp_path / "hf", **config)
        monkeypatch.setattr(GGUFSource, "tokenizer", lambda _: HFDirectory(model).tokenizer())
        return model, write_family_gguf(model, tmp_path / "tiny.gguf", kinds, architecture)

    return write


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_logits_of_its_model(name, file_of, tmp_path):
    model, path = file_of(FILES[name])
    export_onnx(path, tmp_path / "bundle", "fp32")
    ids = random_ids(90)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=90)
    np.testing.assert_allclose(found, torch_logits(model, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma3", "phi3", "granite"])
def test_blocks_are_kept(name, file_of, tmp_path, monkeypatch):
    monkeypatch.setattr("export.onnx.linear.ACCURACY_LEVEL", 1)  # activations are not rounded
    _, path = file_of({**FILES[name], "sliding_window": 24} if name != "granite" else FILES[name], (Kind.Q8_0,))
    ids = random_ids(60)
    rows = []
    for scheme in ("keep", "fp32"):
        export_onnx(path, tmp_path / scheme, scheme)
        rows.append(decoder_of(tmp_path / scheme).extend(ids, rows=60))
    assert np.abs(rows[0] - rows[1]).max() < 1e-3


def test_minicpm_is_llama_with_scales(file_of, tmp_path):
    """MiniCPM is not in transformers: its scales are undone in the weights of a Llama, where that is possible."""
    model, path = file_of({"model_type": "llama", "tie_word_embeddings": False}, architecture="minicpm")
    a = GGUFSource(path).architecture
    assert (a.embedding_scale, round(a.residual_scale, 6), a.logit_scale) == (12.0, 0.7, 0.5)
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    for name in weights:
        if name == "model.embed_tokens.weight":
            weights[name] = weights[name] * np.float32(12)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * np.float32(0.7)
        elif name == "lm_head.weight":
            weights[name] = weights[name] / np.float32(2)
    export_onnx(path, tmp_path / "bundle", "fp32")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    ids = random_ids(60)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=60)
    np.testing.assert_allclose(found, torch_logits(model, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "smollm3", "granite"])
def test_a_file_becomes_a_directory_that_transformers_reads(name, file_of, tmp_path):
    model, path = file_of(FILES[name])
    write_hf_directory(path, tmp_path / "written")
    ids = random_ids(90)
    np.testing.assert_allclose(torch_logits(tmp_path / "written", ids), torch_logits(model, ids), atol=1e-5, rtol=0)


def test_a_family_that_can_not_be_written_as_a_directory_is_named(file_of, tmp_path):
    _, path = file_of(FILES["phi3"])
    with pytest.raises(UnsupportedModelError, match="'phi3'"):
        write_hf_directory(path, tmp_path / "written")


def _header(path: Path, architecture: str, **fields: int) -> Path:
    """Write a file that ends before its vocabulary and weights."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_token_list([f"token {index}" for index in range(100)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "fields", "words"),
    [
        ("mamba", {"block_count": 1}, "architecture 'mamba'"),
        ("gemma3n", {"block_count": 1}, "architecture 'gemma3n'"),
        ("llama", {"attention_twist": 1}, r"'llama\.attention_twist'"),
        ("llama", {"expert_count": 8}, "mixture of experts"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_without_a_weight(architecture, fields, words, tmp_path):
    with pytest.raises(UnsupportedModelError, match=words):
        GGUFSource(_header(tmp_path / "tiny.gguf", architecture, **fields))
