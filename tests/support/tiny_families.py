"""Tiny models of every family beyond Llama's nearest, each with windows shorter than the tests' texts."""

from __future__ import annotations

from typing import Any

WINDOW = 24
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * index for index in range(8)],
    "long_factor": [2.0 + 0.5 * index for index in range(8)],
}
_GEMMA = {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
_SLIDING_QWEN = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
_GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 2.0}

SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "head_dim": 32, "sliding_window": WINDOW},
    "ministral": {
        "model_type": "ministral",
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _ALTERNATING[:2],
    },
    "qwen2": {"model_type": "qwen2", **_SLIDING_QWEN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, **_SLIDING_QWEN},
    "gemma2": {
        "model_type": "gemma2",
        **_GEMMA,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma2-one-kv-head": {"model_type": "gemma2", **_GEMMA, "num_key_value_heads": 1, "num_hidden_layers": 3},
    "gemma2-narrow-heads": {"model_type": "gemma2", **_GEMMA, "head_dim": 24, "final_logit_softcapping": 1.0},
    "gemma3": {"model_type": "gemma3_text", **_GEMMA, "num_hidden_layers": 7, "num_key_value_heads": 1},
    "gemma3-scaled": {
        "model_type": "gemma3_text",
        **_GEMMA,
        "query_pre_attn_scalar": 24,
        "num_hidden_layers": 3,
        "layer_types": _ALTERNATING,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3-wide": {
        "model_type": "gemma3_text",
        **_GEMMA,
        "num_hidden_layers": 3,
        "hidden_size": 96,
        "head_dim": 40,
        "layer_types": _ALTERNATING,
    },
    "phi3": {"model_type": "phi3", "sliding_window": WINDOW},
    "phi3-partial": {"model_type": "phi3", "partial_rotary_factor": 0.75, "hidden_size": 96},
    "phi3-longrope": {"model_type": "phi3", "original_max_position_embeddings": 128, "rope_scaling": _LONGROPE},
    "olmo2": {"model_type": "olmo2"},
    "olmo2-untied": {"model_type": "olmo2", "tie_word_embeddings": False, "num_key_value_heads": 4},
    "olmo2-wide": {"model_type": "olmo2", "hidden_size": 96, "num_hidden_layers": 3},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5},
    "smollm3-own-layers": {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [0, 1, 1]},
    "smollm3-narrow-heads": {"model_type": "smollm3", "num_hidden_layers": 4, "hidden_size": 96},
    "granite": {"model_type": "granite", **_GRANITE},
    "granite-biases": {"model_type": "granite", **_GRANITE, "attention_bias": True, "mlp_bias": True},
    "granite-untied": {"model_type": "granite", **_GRANITE, "tie_word_embeddings": False, "num_key_value_heads": 1},
    "stablelm": {"model_type": "stablelm", "partial_rotary_factor": 0.5},
    "stablelm-biases": {"model_type": "stablelm", "use_qkv_bias": True, "hidden_size": 128},
    "stablelm-whole": {"model_type": "stablelm", "partial_rotary_factor": 1.0, "num_key_value_heads": 4},
    **{f"heads-of-{width}": {"model_type": "llama", "head_dim": width} for width in (8, 24, 40, 72, 100, 120)},
}
