"""Describes models to transformers that it can't read itself: some GGUF architectures, and MiniCPM's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.model.hf_fields import features_of, sizes_of
from export.model.transformers_config import readable_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.model.architecture import Architecture


def described_config(a: Architecture, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Build a Hugging Face configuration from what our reader made of a source.

    Args:
        a: the decoder.
        rope: the configuration's fields of rotary positions.
    """
    window = next((window for window in a.windows if window is not None), None)
    config: dict[str, Any] = {
        "model_type": a.family,
        **sizes_of(a),
        "attention_bias": a.qkv_bias,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **features_of(a),
        **rope,
    }
    part = 2 * len(a.rope.inverse_frequencies) / a.head_dim
    if a.family == "minicpm":
        return config | {"model_type": "granite"}
    if a.family == "smollm3":
        return config | {"use_sliding_window": False}
    if a.family == "stablelm":
        return config | {"use_qkv_bias": a.qkv_bias, "partial_rotary_factor": part}
    if a.family == "phi3":
        return config | {"sliding_window": window, "partial_rotary_factor": part}
    return config


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
        "embedding_multiplier": float(config["scale_emb"]),
        "residual_multiplier": float(config["scale_depth"]) / layers**0.5,
        "logits_scaling": hidden / float(config["dim_model_base"]),
        "attention_multiplier": float(config.get("head_dim") or hidden // heads) ** -0.5,
    }
