"""Describes the shape of a Llama-family decoder and reads it from a Hugging Face configuration."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from export.errors import SourceError, UnsupportedModelError
from export.model.rope import Rope, rope_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3", "gemma")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder of the Llama family.

    Attributes:
        family: model type of the source, one of `LLAMA_FAMILY`.
        layers, hidden, heads, kv_heads, head_dim, intermediate, vocab: sizes.
        context_length: maximum number of positions of the exported graph.
        sliding_window: number of keys that a query attends to in the source model; None means all. An exported graph
            has no shorter window than `context_length`.
        norm_eps: epsilon of every RMS norm.
        norm_offset: added to every norm's weight (1.0 in Gemma).
        rope: rotary positions.
        activation: "silu", "gelu" or "gelu_tanh".
        qkv_bias, o_bias, mlp_bias: whether these projections have a bias.
        head_norms: whether each query and key head has an RMS norm before rotation (Qwen3).
        embedding_scale: factor for embeddings (sqrt(hidden) in Gemma).
        tied_head: whether the head uses the embedding's matrix.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_length: int
    sliding_window: int | None
    norm_eps: float
    norm_offset: float
    rope: Rope
    activation: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_norms: bool
    embedding_scale: float
    tied_head: bool

    def __post_init__(self) -> None:
        sizes = (self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate, self.vocab)
        if min(*sizes, self.context_length) < 1 or self.heads % self.kv_heads or self.head_dim % 2:
            raise SourceError(f"The model's sizes don't fit together: {self}. Check its configuration.")
        if len(self.rope.inverse_frequencies) != self.head_dim // 2:
            raise UnsupportedModelError(
                f"The model rotates only {2 * len(self.rope.inverse_frequencies)} of {self.head_dim} values of a head "
                "(partial rotary positions), which the graph can't. Choose another model."
            )

    @property
    def query_width(self) -> int:
        """Columns of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def with_context(self, length: int | None) -> Architecture:
        """Return the same decoder for `length` positions; None uses the model's own maximum.

        Raises:
            UnsupportedModelError: `length` exceeds the model's maximum or its sliding window.
        """
        natural = min(self.context_length, self.sliding_window or self.context_length)
        if length is None:
            return replace(self, context_length=natural)
        if length < 1 or length > self.context_length:
            raise UnsupportedModelError(
                f"`context_length` must be in 1 .. {self.context_length:,}, as the model was made for, not {length:,}."
            )
        if length > natural:
            raise UnsupportedModelError(
                f"Beyond {natural:,} positions the model's attention slides, which the graph can't do. Set "
                f"`context_length` to {natural} or less, not to {length}."
            )
        return replace(self, context_length=length)


def from_hf_config(config: Mapping[str, Any], where: str) -> Architecture:
    """Read a Hugging Face `config.json`.

    Args:
        config: the parsed file.
        where: its path, for error messages.

    Raises:
        UnsupportedModelError: the family is not supported, or the graph lacks a feature of the model.
        SourceError: a field is missing or of the wrong type.
    """
    family = config.get("model_type")
    if family not in LLAMA_FAMILY:
        raise UnsupportedModelError(f"'{family}' is not of the Llama family ({', '.join(LLAMA_FAMILY)}): {where}.")
    _refuse_unsupported(config, where)
    # transformers knows each family's defaults; its configuration classes need no model.
    from transformers import AutoConfig

    try:
        # A copy, because transformers 5 writes into what it is given.
        full = AutoConfig.for_model(**copy.deepcopy(dict(config)))
    except Exception as error:  # transformers 5 has exceptions of its own for this
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"The model's configuration is not valid: {where} ({reason}).") from None
    try:
        hidden, heads = int(full.hidden_size), int(full.num_attention_heads)
        head_dim = int(getattr(full, "head_dim", None) or hidden // heads)
        gemma, attention_bias = family == "gemma", bool(getattr(full, "attention_bias", False))
        activation = full.hidden_act
        if gemma and activation == "gelu":
            # Gemma's first files say "gelu" and mean the approximation; transformers reads it so since version 5.
            activation = "gelu_pytorch_tanh"
        if activation not in _ACTIVATIONS:
            raise UnsupportedModelError(f"The activation '{activation}' is not supported: {where}.")
        return Architecture(
            family=family,
            layers=int(full.num_hidden_layers),
            hidden=hidden,
            heads=heads,
            kv_heads=int(getattr(full, "num_key_value_heads", None) or heads),
            head_dim=head_dim,
            intermediate=int(full.intermediate_size),
            vocab=int(full.vocab_size),
            context_length=int(full.max_position_embeddings),
            sliding_window=_sliding_window(full, family),
            norm_eps=float(full.rms_norm_eps),
            norm_offset=1.0 if gemma else 0.0,
            rope=rope_from_config(config, head_dim, where),
            activation=_ACTIVATIONS[activation],
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=attention_bias and family != "qwen2",
            mlp_bias=bool(getattr(full, "mlp_bias", False)),
            head_norms=family == "qwen3",
            embedding_scale=hidden**0.5 if gemma else 1.0,
            tied_head=bool(full.tie_word_embeddings),
        )
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise SourceError(f"The model's configuration is not valid: {where} ({error}).") from None


def _sliding_window(config: Any, family: str) -> int | None:
    if family in ("qwen2", "qwen3") and not getattr(config, "use_sliding_window", False):
        return None
    layer_types = getattr(config, "layer_types", None)
    if layer_types and "sliding_attention" not in layer_types:
        return None
    window = getattr(config, "sliding_window", None)
    return int(window) if window else None


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    reasons = (
        ("quantization_config" in config, "its weights are already quantized (quantization_config). Use the original"),
        (float(config.get("partial_rotary_factor") or 1.0) != 1.0, "it rotates only a part of each head"),
        (bool(config.get("attn_logit_softcapping")), "it caps attention scores"),
        (bool(config.get("final_logit_softcapping")), "it caps the logits"),
        (bool(config.get("num_experts") or config.get("num_local_experts")), "it is a mixture of experts"),
        (int(config.get("pretraining_tp") or 1) > 1, "it was split for tensor-parallel pretraining"),
    )
    for applies, reason in reasons:
        if applies:
            raise UnsupportedModelError(f"This model can't be exported, {reason}: {where}.")
