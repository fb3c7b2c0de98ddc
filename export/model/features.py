"""Defines what the layers of a decoder can have, and which of it each model family has, by its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

NormKind: TypeAlias = Literal["rms", "layer"]
"""RMS norm, or a layer norm that also subtracts the mean and adds a bias."""
HeadNorms: TypeAlias = Literal["none", "head", "whole"]
"""Norms of queries and keys before rotation: none, one per head (Qwen3), or one over all heads together (OLMo 2)."""


@dataclass(frozen=True, slots=True)
class NormPlacement:
    """The names of a layer's norms, at each place; None where the layer has none.

    The places are the inputs of attention and MLP, and their outputs before they are added to the hidden states.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None

    def names(self) -> tuple[str, ...]:
        """Return the norms that there are."""
        places = (self.before_attention, self.after_attention, self.before_mlp, self.after_mlp)
        return tuple(name for name in places if name)


LLAMA_NORMS = NormPlacement()
GEMMA_NORMS = NormPlacement(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
OLMO2_NORMS = NormPlacement(None, "post_attention_layernorm", None, "post_feedforward_layernorm")


def family_features(config: Any, raw: Mapping[str, Any], family: str, head_dim: int) -> dict[str, Any]:
    """Return the fields of `Architecture` that depend on the family, beside sizes and rotary positions.

    Args:
        config: the configuration with the family's defaults filled in.
        raw: the configuration as stored.
        family: the model type.
        head_dim: width of a head.

    Raises:
        AttributeError, TypeError, ValueError, KeyError: the configuration is not valid.
    """
    layers, hidden = int(config.num_hidden_layers), int(config.hidden_size)
    attention_bias = bool(getattr(config, "attention_bias", False))
    fields: dict[str, Any] = {
        "windows": _windows(config, family, layers),
        "qkv_bias": family == "qwen2" or attention_bias or bool(getattr(config, "use_qkv_bias", False)),
        "o_bias": attention_bias and family != "qwen2",
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "query_scale": head_dim**-0.5,
    }
    if family in ("gemma", "gemma2", "gemma3_text"):
        fields |= {"norm_offset": 1.0, "embedding_scale": hidden**0.5}
    if family in ("gemma2", "gemma3_text"):
        fields |= {
            "norms": GEMMA_NORMS,
            "query_scale": float(config.query_pre_attn_scalar) ** -0.5,
            "attention_cap": _cap(config.attn_logit_softcapping),
            "logit_cap": _cap(config.final_logit_softcapping),
        }
    if family in ("qwen3", "gemma3_text"):
        fields["head_norms"] = "head"
    if family == "olmo2":
        fields |= {"norms": OLMO2_NORMS, "head_norms": "whole"}
    if family == "smollm3":
        fields["positions"] = tuple(bool(rotates) for rotates in config.no_rope_layers)
    if family == "granite":
        fields |= {
            "embedding_scale": float(config.embedding_multiplier),
            "residual_scale": float(config.residual_multiplier),
            "query_scale": float(config.attention_multiplier),
            "logit_scale": 1 / float(config.logits_scaling),
        }
    if family == "stablelm":
        fields["norm_kind"] = "layer"
    if family == "minicpm":
        fields |= {
            "embedding_scale": float(raw["scale_emb"]),
            "residual_scale": float(raw["scale_depth"]) / layers**0.5,
            "logit_scale": float(raw["dim_model_base"]) / hidden,
        }
    return fields


def _windows(config: Any, family: str, layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    if family in ("qwen2", "qwen3", "smollm3") and not getattr(config, "use_sliding_window", False):
        window = None
    if not window or family not in SLIDING:
        return (None,) * layers
    if family in ("mistral", "phi3"):
        return (int(window),) * layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in config.layer_types)


SLIDING = ("mistral", "ministral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3")
"""Families whose layers can attend to the last keys only."""


def _cap(value: Any) -> float | None:
    return float(value) if value else None
