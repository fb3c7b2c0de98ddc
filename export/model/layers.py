"""A model as a stack of decoder layers, each loaded when its turn comes, so that memory holds one layer at a time."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from export.model.weights import EMBEDDING, FINAL_NORM, HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.model.weights import WeightSource

_BATCH = 4  # windows that go through a layer together


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
        # Rotary frequencies are computed, not stored, so a module on "meta" has none.
        self._rotary: Any = type(self._model.model.rotary_emb)(config=config)
        self.count = len(self._model.model.layers)

    def embed(self, windows: NDArray[np.int64]) -> torch.Tensor:
        """Hidden states that enter the first layer."""
        table = torch.from_numpy(self.source.read(EMBEDDING))
        return table[torch.from_numpy(windows)] * self.source.architecture.embedding_scale

    def layer(self, index: int) -> Any:
        """A decoder layer with its weights, in evaluation mode and without gradients."""
        layer = copy.deepcopy(self._model.model.layers[index]).to_empty(device="cpu")
        names = layer.state_dict().keys()
        prefix = f"model.layers.{index}."
        layer.load_state_dict({name: torch.from_numpy(self.source.read(prefix + name)) for name in names})
        return layer.eval().requires_grad_(False)

    def attention(self, layer: Any, normed: torch.Tensor) -> torch.Tensor:
        """Output of the attention block, its output projection included: (n, T, hidden)."""
        positions = torch.arange(normed.shape[1])[None]
        rotary = self._rotary(normed, positions)
        result = layer.self_attn(
            hidden_states=normed, position_embeddings=rotary, attention_mask=None, position_ids=positions
        )
        output: torch.Tensor = result[0]
        return output

    def forward(self, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
        """The whole layer."""
        hidden = hidden + self.attention(layer, layer.input_layernorm(hidden))
        output: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output

    def final_norm(self) -> Any:
        """The norm before the head."""
        norm = copy.deepcopy(self._model.model.norm).to_empty(device="cpu")
        norm.load_state_dict({"weight": torch.from_numpy(self.source.read(FINAL_NORM))})
        return norm.eval().requires_grad_(False)

    def head(self) -> torch.Tensor:
        """The output matrix: (vocabulary, hidden)."""
        return torch.from_numpy(self.source.read(EMBEDDING if self.source.architecture.tied_head else HEAD))


def batches(hidden: torch.Tensor) -> list[slice]:
    """Slices of a few windows each, which bound the memory of a layer's inner states."""
    return [slice(start, start + _BATCH) for start in range(0, len(hidden), _BATCH)]


def _config(source: WeightSource) -> Any:
    from transformers import AutoConfig

    if source.path.is_dir():
        return AutoConfig.from_pretrained(source.path)
    return AutoConfig.from_pretrained(source.path.parent, gguf_file=source.path.name)
