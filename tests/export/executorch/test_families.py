"""The torch form for ExecuTorch computes what transformers does, for every family that its kernel allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from export.errors import UnsupportedModelError
from export.executorch.export import export_executorch
from export.executorch.model import DecoderModel
from export.model.hf_source import HFSource
from tests.support.tiny_families import SHAPES, WINDOW
from tests.support.tiny_models import make_model, random_ids, torch_logits

POSSIBLE = [name for name, shape in SHAPES.items() if shape["model_type"] != "gemma2"]


@pytest.mark.parametrize("name", POSSIBLE)
def test_every_row_is_that_of_transformers(name, tmp_path):
    directory = make_model(tmp_path / "model", **SHAPES[name])
    source = HFSource(directory)
    architecture = source.architecture.with_context(None, sliding=False)
    ids = random_ids(min(architecture.context_length, 60))
    model = DecoderModel(architecture, source.read, source.read).eval()
    with torch.no_grad():
        found = model.read(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(found, torch_logits(directory, ids), atol=1e-4, rtol=0)


def test_capped_scores_are_refused_by_the_familys_name(tmp_path):
    directory = make_model(tmp_path / "model", **SHAPES["gemma2"])
    with pytest.raises(UnsupportedModelError, match="'gemma2' cap"):
        export_executorch(directory, tmp_path / "bundle", "fp32")


def test_a_longer_context_than_the_window_is_refused(tmp_path):
    directory = make_model(tmp_path / "model", **SHAPES["gemma3"])
    with pytest.raises(UnsupportedModelError, match=f"`context_length` to {WINDOW}"):
        export_executorch(directory, tmp_path / "bundle", "fp32", context_length=WINDOW + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gemma3-scaled", "phi3-partial", "olmo2", "smollm3-own-layers", "granite", "stablelm"]
)
def test_the_program_computes_the_same(name, tmp_path):
    directory = make_model(tmp_path / "model", **SHAPES[name])
    export_executorch(directory, tmp_path / "bundle", "fp32", adapter_sites="all")
    decoder = open_decoder(open_bundle(tmp_path / "bundle"), BACKEND_EXECUTORCH, threads=1)
    ids = random_ids(WINDOW)
    np.testing.assert_allclose(decoder.extend(ids, rows=WINDOW), torch_logits(directory, ids), atol=3e-4, rtol=0)
