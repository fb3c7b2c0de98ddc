"""A file whose blocks can't be carried over is refused from its header, by name and at once."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from export.errors import UnsupportedQuantizationError
from export.executorch.export import export_executorch
from export.onnx.export import export_onnx


def write(path, *kinds, words=10):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"word {number}" for number in range(words)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * words)
    writer.add_string("general.name", "tiny")
    for kind in kinds:
        size, length = gguf.GGML_QUANT_SIZES[kind]
        data = np.zeros((2, 256 // size * length), np.uint8)
        writer.add_tensor(f"{kind.name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "kind",
    [Kind.IQ2_XXS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ1_S, Kind.IQ1_M, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4],
)
def test_kinds_that_can_not_be_kept_are_refused_by_name_before_weights_are_read(kind, tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf", Kind.Q4_K, kind, words=30_000)

    def read(*_):
        raise AssertionError("the file was opened")

    monkeypatch.setattr("export.onnx.export.open_model", read)
    with pytest.raises(UnsupportedQuantizationError, match=rf"'{kind.name}\.weight'.*{kind.name}.*`quantize` int8"):
        export_onnx(path, tmp_path / "bundle", "keep")


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_0, Kind.Q6_K, Kind.IQ4_NL])
def test_executorch_refuses_what_its_delegate_has_no_form_for(kind, tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf", Kind.Q8_0, kind)
    monkeypatch.setattr("export.executorch.export.open_source", lambda _: pytest.fail("the file was opened"))
    with pytest.raises(UnsupportedQuantizationError, match=rf"{kind.name}.*by ExecuTorch.*`quantize` int8"):
        export_executorch(path, tmp_path / "bundle", "keep")
