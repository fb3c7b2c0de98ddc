"""Describes models to transformers that it can't read itself: some GGUF architectures, and MiniCPM's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import UnsupportedModelError
from export.model.transformers_config import readable_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.model.architecture import Architecture

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def described_config(a: Architecture, where: str) -> dict[str, Any]:
    """Build a Hugging Face configuration from what our reader made of a source.

    Args:
        a: the decoder.
        where: the source's path, for the error message.

    Raises:
        UnsupportedModelError: the family's configuration isn't known here.
    """
    turned = len(a.rope.inverse_frequencies)
    config: dict[str, Any] = {
        "model_type": a.family,
        "hidden_size": a.hidden,
        "intermediate_size": a.intermediate,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "vocab_size": a.vocab,
        "max_position_embeddings": a.context_length,
        "rms_norm_eps": a.norm_eps,
        "hidden_act": _ACTIVATIONS[a.activation],
        "tie_word_embeddings": a.tied_head,
        "attention_bias": a.qkv_bias,
        "mlp_bias": a.mlp_bias,
        # The second frequency is the base to the power of -1 / (number of frequencies).
        "rope_theta": a.rope.inverse_frequencies[1] ** -turned if turned > 1 else 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if a.family in ("granite", "minicpm"):
        return config | {
            "model_type": "granite",
            "embedding_multiplier": a.embedding_scale,
            "residual_multiplier": a.residual_scale,
            "logits_scaling": 1 / a.logit_scale,
            "attention_multiplier": a.query_scale,
        }
    if a.family == "smollm3":
        rotates = a.positions or (True,) * a.layers
        return config | {"no_rope_layers": [int(layer) for layer in rotates], "use_sliding_window": False}
    if a.family in ("llama", "gemma", "olmo2", "qwen2", "qwen3"):
        return config
    raise UnsupportedModelError(
        f"transformers can't read models of type '{a.family}' from this kind of file, so the export can't be checked: "
        f"{where}. Set `check` to False to export it unchecked."
    )


def known_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in a form that the installed transformers reads; MiniCPM computes what Granite does.

    Raises:
        SourceError, UnsupportedModelError: see `readable_fields`.
    """
    if config.get("model_type") != "minicpm":
        return readable_fields(config, "the configuration")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    layers = int(config["num_hidden_layers"])
    own = ("scale_emb", "scale_depth", "dim_model_base", "model_type", "auto_map")
    others = {name: value for name, value in config.items() if name not in own}
    return readable_fields({**others, "model_type": "granite"}, "the configuration") | {
        "embedding_multiplier": float(config.get("scale_emb", 1)),
        "residual_multiplier": float(config.get("scale_depth", 1)) / layers**0.5,
        "logits_scaling": hidden / float(config.get("dim_model_base", 1)),
        "attention_multiplier": float(config.get("head_dim") or hidden // heads) ** -0.5,
    }
