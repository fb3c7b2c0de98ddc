"""Architectures beyond the Llama family are exported by torch's own exporter, and give the results of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.errors import MissingExtraError
from export.bundle.verify import verify_bundle
from export.errors import ConformanceError, UnsupportedModelError, UnsupportedQuantizationError
from export.onnx.export import export_onnx
from tests.support.tiny_models import VOCABULARY, decoder_of, make_model, random_ids, torch_logits

# Learned positions, partial rotary positions, and a grouped cache: three kinds of graph.
MODELS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt_neox": {"model_type": "gpt_neox", "num_attention_heads": 4},
}


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp(request.param) / "model", **MODELS[request.param])


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_a_portable_bundle_gives_the_logits_of_transformers(model, tmp_path):
    exported = export_onnx(model, tmp_path / "bundle", "fp32")
    assert exported.manifest.decoder.kind == "portable"
    assert exported.manifest.decoder.lora == ()
    assert "by torch" in exported.manifest.decoder.quantization.description
    ids = random_ids(150)
    expected = torch_logits(model, ids)
    decoder = decoder_of(tmp_path / "bundle")
    assert decoder.vocab_size == VOCABULARY
    np.testing.assert_allclose(decoder.extend(ids, rows=150), expected, atol=1e-3)
    decoder.rewind(100)
    np.testing.assert_allclose(decoder.extend(ids[100:], rows=50), expected[100:], atol=1e-3)
    assert verify_bundle(tmp_path / "bundle").conformance["onnx"].greedy_equal == 64


def test_a_graph_that_differs_from_torch_is_refused(tmp_path, monkeypatch):
    from export.onnx import torch_exporter

    model = make_model(tmp_path / "model", **MODELS["gpt2"])
    export = torch_exporter.export_with_torch

    def spoiled(network, file):
        bias = network.transformer.h[1].mlp.c_fc.bias.data
        bias += 0.5
        export(network, file)
        bias -= 0.5

    monkeypatch.setattr(torch_exporter, "export_with_torch", spoiled)
    with pytest.raises(ConformanceError, match="differs from transformers"):
        export_onnx(model, tmp_path / "bundle", "fp32")
    assert not (tmp_path / "bundle").exists()


def test_the_extra_is_named_where_torch_can_not_export(tmp_path, monkeypatch):
    from export.onnx import portable, torch_exporter

    def broken(*_):
        raise RuntimeError("an operator is missing")

    monkeypatch.setattr(torch_exporter, "export_with_torch", broken)
    monkeypatch.setattr(portable, "optimum_is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"operator is missing.*cogenesis-edge\[optimum\]"):
        export_onnx(make_model(tmp_path / "model", **MODELS["gpt2"]), tmp_path / "bundle", "fp32")


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_int8_is_the_default_and_smaller(model, tmp_path):
    small = export_onnx(model, tmp_path / "int8")
    large = export_onnx(model, tmp_path / "fp32", "fp32", context_length=100)
    assert (small.manifest.decoder.quantization.scheme, small.manifest.context_length) == ("int8", 1024)
    assert large.manifest.context_length == 100
    graphs = [next(entry.size for entry in bundle.manifest.files if entry.role == "graph") for bundle in (small, large)]
    assert graphs[0] < 0.5 * graphs[1]
    ids = random_ids(100)
    expected = torch_logits(model, ids)
    noise = decoder_of(tmp_path / "int8").extend(ids, rows=100) - expected
    assert np.sqrt((noise**2).mean()) / expected.std() < 0.05
    assert sorted(path.name for path in (tmp_path / "int8" / "onnx").iterdir()) == ["model.onnx"]
    assert open_bundle(tmp_path / "int8").manifest.model.architecture == "gpt2"


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_what_can_not_be_exported_is_refused(model, tmp_path):
    with pytest.raises(UnsupportedQuantizationError, match="has no 'mixed'"):
        export_onnx(model, tmp_path / "bundle", "mixed")
    with pytest.raises(UnsupportedModelError, match=r"`context_length` must be in 1 \.\. 1,024"):
        export_onnx(model, tmp_path / "bundle", "fp32", context_length=4096)
    mamba = make_model(tmp_path / "mamba", model_type="mamba")
    with pytest.raises(UnsupportedModelError, match="'mamba'"):
        export_onnx(mamba, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
