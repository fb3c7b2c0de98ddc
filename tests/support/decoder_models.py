"""Tiny random models and their bundles for the decoder tests, made by the real exporter; torch is the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from edge_runtime.bundle.reader import Bundle, open_bundle
from export.onnx.export import export_onnx
from tests.support.tiny_models import make_model


@dataclass(frozen=True)
class TinyModel:
    """A model's directory and the bundle made from it."""

    directory: Path
    bundle: Bundle

    def torch(self) -> Any:
        """Load the model in transformers, a new copy each time."""
        return AutoModelForCausalLM.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def tiny_model(directory: Path, quantize: Any = "fp32", **config: Any) -> TinyModel:
    """Make a random model and its bundle."""
    source = make_model(directory / "model", **config)
    export_onnx(source, directory / "bundle", quantize, check=False)  # the exporter's own tests check exports
    return TinyModel(source, open_bundle(directory / "bundle"))


def torch_rows(model: Any, token_ids: list[int]) -> NDArray[np.float32]:
    """Compute all rows of logits with torch: (len(token_ids), vocabulary)."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([token_ids])).logits[0].numpy()
    return logits
