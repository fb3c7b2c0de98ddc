"""Describes a decoder that was read from a GGUF file as transformers does: its configuration and its norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import UnsupportedModelError
from export.model.gguf.families import OFFSET_NORMS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from export.model.architecture import Architecture

CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
}
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}


def check_writable(a: Architecture, path: Path) -> None:
    """Reject a model whose configuration can't be written, before its weights are read.

    Raises:
        UnsupportedModelError: names the family.
    """
    if a.family not in CLASSES:
        raise UnsupportedModelError(
            f"GGUF files of type '{a.family}' can't be written as a Hugging Face directory, supported are "
            f"{', '.join(CLASSES)}: {path}. Use the original model directory."
        )


def sizes_of(a: Architecture) -> dict[str, Any]:
    """Return the fields of a configuration that every family has."""
    return {
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "vocab_size": a.vocab,
        "max_position_embeddings": a.context_length,
        "tie_word_embeddings": a.tied_head,
        "mlp_bias": a.mlp_bias,
        ("layer_norm_eps" if a.norm_kind == "layer" else "rms_norm_eps"): a.norm_eps,
    }


def features_of(a: Architecture) -> dict[str, Any]:
    """Return the fields of a configuration that `export.model.features` reads."""
    activation = _ACTIVATIONS.get(a.activation, a.activation)
    fields: dict[str, Any] = {"hidden_act": activation}
    window = next((window for window in a.windows if window is not None), None)
    if a.family in ("gemma2", "gemma3_text"):
        fields = {
            "hidden_activation": activation,
            "query_pre_attn_scalar": _whole(round(a.query_scale**-2, 4)),
            "attn_logit_softcapping": a.attention_cap,
            "final_logit_softcapping": a.logit_cap,
            "sliding_window": window,
            "layer_types": ["full_attention" if one is None else "sliding_attention" for one in a.windows],
        }
    if a.local_rope is not None and a.local_rope.inverse_frequencies[1:]:
        # The second frequency is theta^(-2 / head_dim).
        fields["rope_local_base_freq"] = round(a.local_rope.inverse_frequencies[1] ** (-a.head_dim / 2), 1)
    if a.family == "smollm3":
        fields["pad_token_id"] = None  # the default exceeds small vocabularies
        fields["no_rope_layers"] = [int(rotates) for rotates in a.positions]
    if a.family in ("granite", "minicpm"):
        fields |= {
            "embedding_multiplier": a.embedding_scale,
            "residual_multiplier": a.residual_scale,
            "attention_multiplier": a.query_scale,
            "logits_scaling": 1 / a.logit_scale,
        }
    return fields


def _whole(value: float) -> float | int:
    """Return a whole number as an integer, because transformers 5 takes no other for some fields."""
    return int(value) if value.is_integer() else value


def hf_values(a: Architecture, read: Callable[[str], NDArray[np.float32]]) -> Callable[[str], NDArray[np.float32]]:
    """Return a reader of tensors as transformers wants them: without the 1 that Gemma's code adds to norms."""

    def values(name: str) -> NDArray[np.float32]:
        array = read(name)
        return array - np.float32(1) if a.family in OFFSET_NORMS and name.endswith("norm.weight") else array

    return values
