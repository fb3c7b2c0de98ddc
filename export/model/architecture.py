"""Describes a decoder by what its layers have, and reads it from a Hugging Face configuration."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from export.errors import SourceError, UnsupportedModelError
from export.model.config_keys import check_keys
from export.model.features import LLAMA_NORMS, HeadNorms, NormKind, NormPlacement, family_features
from export.model.rope import Rope, right_length, rope_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping

LLAMA_FAMILY = (
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "smollm3",
    "granite",
    "stablelm",
    "minicpm",
)
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_ACTIVATION_KEYS = {"gemma2": "hidden_activation", "gemma3_text": "hidden_activation"}
_PARTIAL_ROTARY = ("phi3", "stablelm")
_DEFAULTS_OF = {"minicpm": "llama"}  # transformers has no configuration of its own for these


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder, described by what its layers have.

    Attributes:
        family: model type of the source, one of `LLAMA_FAMILY`; for names and messages only.
        layers, hidden, heads, kv_heads, head_dim, intermediate, vocab: sizes.
        context_length: maximum number of positions of the exported graph.
        norm_eps: epsilon of every norm.
        rope: rotary positions.
        activation: "silu", "gelu" or "gelu_tanh".
        qkv_bias, o_bias, mlp_bias: whether these projections have a bias.
        tied_head: whether the head uses the embedding's matrix.
        windows: for each layer, the number of keys that a query attends to, its own included; None means all.
        query_scale: factor of the products of queries and keys.
        norm_offset: added to every norm's weight (1.0 in Gemma).
        norm_kind, norms, head_norms: see `export.model.features`.
        local_rope: rotary positions of the layers with a window, if they differ (Gemma 3).
        positions: for each layer, whether it rotates queries and keys; empty means that all do.
        attention_cap, logit_cap: soft caps c * tanh(x / c) of attention scores and logits.
        embedding_scale: factor for embeddings (sqrt(hidden) in Gemma).
        residual_scale: factor for the outputs of attention and MLP.
        logit_scale: factor for logits.
        right_length: number of positions for which `rope` is right; None means all.
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
    norm_eps: float
    rope: Rope
    activation: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied_head: bool
    windows: tuple[int | None, ...]
    query_scale: float
    norm_offset: float = 0.0
    norm_kind: NormKind = "rms"
    norms: NormPlacement = LLAMA_NORMS
    head_norms: HeadNorms = "none"
    local_rope: Rope | None = None
    positions: tuple[bool, ...] = ()
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    right_length: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate, self.vocab)
        if min(*sizes, self.context_length) < 1 or self.heads % self.kv_heads:
            raise SourceError(f"The model's sizes don't fit together: {self}. Check its configuration.")
        ropes = [rope for rope in (self.rope, self.local_rope) if rope is not None]
        if any(not 0 < 2 * len(rope.inverse_frequencies) <= self.head_dim for rope in ropes):
            raise SourceError(
                f"The model rotates {2 * len(self.rope.inverse_frequencies)} values of a head of {self.head_dim}. "
                "Check its configuration."
            )
        if len(self.windows) != self.layers or len(self.positions) not in (0, self.layers):
            raise SourceError(f"The configuration describes another number of layers than {self.layers}. Check it.")
        if any(window is not None and window < 1 for window in self.windows):
            raise SourceError(f"A sliding window has no keys: {self.windows}. Check the model's configuration.")

    def layer_rope(self, layer: int) -> Rope | None:
        """Return a layer's rotary positions, or None if it doesn't rotate."""
        if self.positions and not self.positions[layer]:
            return None
        return self.rope if self.windows[layer] is None else self.local_rope or self.rope

    @property
    def plain(self) -> bool:
        """Whether layers are those of Llama or Qwen, except for biases, head norms and rotary frequencies."""
        return (
            self.norms == LLAMA_NORMS
            and self.norm_kind == "rms"
            and self.head_norms != "whole"
            and not self.positions
            and not any(self.windows)
            and self.query_scale == self.head_dim**-0.5
            and 2 * len(self.rope.inverse_frequencies) == self.head_dim
            and self.attention_cap is None
            and self.logit_cap is None
            and self.residual_scale == self.logit_scale == 1.0
            and self.right_length is None
        )

    @property
    def query_width(self) -> int:
        """Columns of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def with_context(self, length: int | None, *, sliding: bool = True) -> Architecture:
        """Return the same decoder for `length` positions; None uses the model's own maximum.

        Args:
            length: the wanted number of positions.
            sliding: whether the graph can do sliding windows; if not, the context ends at the shortest window.

        Raises:
            UnsupportedModelError: `length` exceeds the model's maximum, its sliding window if `sliding` is false, or
                the positions for which its rotary frequencies are right.
        """
        right = self.right_length or self.context_length
        window = min((window for window in self.windows if window is not None), default=self.context_length)
        natural = min(self.context_length, right, self.context_length if sliding else window)
        if length is None:
            return replace(self, context_length=natural)
        if length < 1 or length > self.context_length:
            raise UnsupportedModelError(
                f"`context_length` must be in 1 .. {self.context_length:,}, as the model was made for, not {length:,}."
            )
        if length > natural:
            problem = (
                "the model rotates all positions otherwise (longrope)"
                if natural == right
                else "the model's attention slides"
            )
            raise UnsupportedModelError(
                f"Beyond {natural:,} positions {problem}, which the graph can't do. Set "
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
    check_keys(config, family, where)
    # transformers knows each family's defaults; its configuration classes need no model.
    from transformers import AutoConfig

    try:
        # A copy, because transformers 5 writes into what it is given.
        copied = copy.deepcopy(dict(config))
        full = AutoConfig.for_model(**{**copied, "model_type": _DEFAULTS_OF.get(family, family)})
    except Exception as error:  # transformers 5 has exceptions of its own for this
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"The model's configuration is not valid: {where} ({reason}).") from None
    try:
        hidden, heads = int(full.hidden_size), int(full.num_attention_heads)
        head_dim = int(getattr(full, "head_dim", None) or hidden // heads)
        activation = getattr(full, _ACTIVATION_KEYS.get(family, "hidden_act"))
        if family == "gemma" and activation == "gelu":
            # Gemma's first files say "gelu" and mean the approximation; transformers reads it so since version 5.
            activation = "gelu_pytorch_tanh"
        if activation not in _ACTIVATIONS:
            raise UnsupportedModelError(f"The activation '{activation}' is not supported: {where}.")
        two_ropes = family == "gemma3_text"
        rope = rope_from_config(config, head_dim, where, "full_attention" if two_ropes else None)
        if 2 * len(rope.inverse_frequencies) != head_dim and family not in _PARTIAL_ROTARY:
            raise UnsupportedModelError(
                f"This model can't be exported, it rotates only a part of each head, as no '{family}' does: {where}."
            )
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
            norm_eps=float(full.layer_norm_eps if family == "stablelm" else full.rms_norm_eps),
            rope=rope,
            local_rope=rope_from_config(config, head_dim, where, "sliding_attention") if two_ropes else None,
            activation=_ACTIVATIONS[activation],
            tied_head=bool(full.tie_word_embeddings),
            right_length=right_length(config, where),
            **family_features(full, config, family, head_dim),
        )
    except KeyError as error:
        raise SourceError(f"The model's configuration lacks the field {error}: {where}. Download it again.") from None
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise SourceError(f"The model's configuration is not valid: {where} ({error}).") from None
