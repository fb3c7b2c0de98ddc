"""Runs a model layer by layer and loads each layer when needed, so memory holds only one layer at a time."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from export.model.transformers_config import transformers_config
from export.model.weights import EMBEDDING, FINAL_NORM, HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.model.weights import WeightSource

_BATCH = 4  # windows per forward pass


class LayerStack:
    """The decoder layers of a Llama-family model, run with transformers' own code.

    All hidden states are (n, T, hidden) float32; the n windows are independent sequences without padding.
    """

    def __init__(self, source: WeightSource) -> None:
        self.source = source
        config = _config(source)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            from transformers import AutoModelForCausalLM

            self._model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Rotary frequencies are computed, not loaded, so the module on "meta" has no values.
        self._rotary: Any = type(self._model.model.rotary_emb)(config=config)
        self.count = len(self._model.model.layers)

    def embed(self, windows: NDArray[np.int64]) -> torch.Tensor:
        """Compute the hidden states before the first layer."""
        table = torch.from_numpy(self.source.read(EMBEDDING))
        return table[torch.from_numpy(windows)] * self.source.architecture.embedding_scale

    def layer(self, index: int) -> Any:
        """Load a decoder layer's weights; the layer is in evaluation mode and without gradients."""
        layer = copy.deepcopy(self._model.model.layers[index]).to_empty(device="cpu")
        names = layer.state_dict().keys()
        prefix = f"model.layers.{index}."
        layer.load_state_dict({name: torch.from_numpy(self.source.read(prefix + name)) for name in names})
        return layer.eval().requires_grad_(False)

    def attention(self, layer: Any, normed: torch.Tensor) -> torch.Tensor:
        """Run the attention block, including its output projection: (n, T, hidden)."""
        positions = torch.arange(normed.shape[1])[None]
        rotary = self._rotary(normed, positions)
        result = layer.self_attn(
            hidden_states=normed, position_embeddings=rotary, attention_mask=None, position_ids=positions
        )
        output: torch.Tensor = result[0]
        return output

    def forward(self, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Run the whole layer."""
        hidden = hidden + self.attention(layer, layer.input_layernorm(hidden))
        output: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output

    def final_norm(self) -> Any:
        """Load the norm before the head."""
        norm = copy.deepcopy(self._model.model.norm).to_empty(device="cpu")
        norm.load_state_dict({"weight": torch.from_numpy(self.source.read(FINAL_NORM))})
        return norm.eval().requires_grad_(False)

    def head(self) -> torch.Tensor:
        """Load the output matrix (vocabulary, hidden)."""
        return torch.from_numpy(self.source.read(EMBEDDING if self.source.architecture.tied_head else HEAD))


def batches(hidden: torch.Tensor) -> list[slice]:
    """Split windows into small batches, which bound the memory for a layer's inner states."""
    return [slice(start, start + _BATCH) for start in range(0, len(hidden), _BATCH)]


def _config(source: WeightSource) -> Any:
    if source.path.is_dir():
        return transformers_config(source.path)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.path.parent, gguf_file=source.path.name)
