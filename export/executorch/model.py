"""A decoder as a torch module in the form that suits ExecuTorch's XNNPACK delegate.

The cost of a decoding step depends more on the number of operations than on their size, so there are few. One product
gives q, k and v, and one gives gate and up. Queries and keys are rotated together (and values with them, unused). The
mean of an RMS norm and the quarter turn of a head are products with constant matrices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from export.executorch.attention import cached_attention
from export.executorch.linear import JoinedLinear, embedding_module, head_module
from export.model.lora_sites import lora_sites
from export.model.weights import EMBEDDING, FINAL_NORM, HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from export.model.architecture import Architecture
    from export.model.lora_sites import AdapterSites
    from export.model.quantized_matrix import Matrix
    from export.model.rope import Rope


class DecoderModel(nn.Module):
    """The whole decoder; it holds weights but no state."""

    def __init__(
        self,
        architecture: Architecture,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], NDArray[np.float32]],
        adapter_sites: AdapterSites = "all",
    ) -> None:
        """Gather the weights.

        Args:
            architecture: the decoder's shape.
            matrix: returns a weight matrix, by its Hugging Face name, in the form to be stored.
            vector: returns a norm's weight or a bias, by its name.
            adapter_sites: layers that accept an adapter; each takes time, even without an adapter.
        """
        super().__init__()
        a = architecture
        self.architecture = a
        self.lora_sites = lora_sites(a, adapter_sites)
        self.cache_shape = (a.kv_heads, a.head_dim)
        self.embedding_scale, self.logit_scale, self.logit_cap = a.embedding_scale, a.logit_scale, a.logit_cap
        # None stands for layers that don't rotate.
        self.ropes = tuple(dict.fromkeys(a.layer_rope(layer) for layer in range(a.layers)))
        self.rope_of = [self.ropes.index(a.layer_rope(layer)) for layer in range(a.layers)]
        table = matrix(EMBEDDING)
        self.embedding = embedding_module(table)
        self.turns = nn.ModuleList(_Turn(rope, a.head_dim) for rope in self.ropes)
        self.layers = nn.ModuleList(_Layer(a, f"model.layers.{index}.", matrix, vector) for index in range(a.layers))
        self.norm = _norm(a, FINAL_NORM, vector)
        self.head = head_module(table if a.tied_head else matrix(HEAD))

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        caches: Sequence[torch.Tensor],
        adapter: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Feed tokens.

        Args:
            token_ids: (1, S) int64.
            positions: (S,) int64, consecutive.
            rows: (R,) int64, indices of the tokens whose logits are returned.
            caches: key and value cache of each layer, (1, capacity, kv_heads, head_dim) float32; changed in place.
            adapter: A (1, in_features, r) and B (1, r, out_features) float32 for each layer and site
                (`lora_sites`), or empty.

        Returns:
            Logits (1, R, vocabulary) float32.
        """
        start = positions[0].item()
        torch._check(start >= 0)
        turns = [turn(positions) for turn in self.turns]
        x = self.embedding(token_ids)
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        pairs = iter(zip(adapter[::2], adapter[1::2], strict=True))
        for index, layer in enumerate(self.layers):
            sides = {site.name: pair for site, pair in zip(self.lora_sites, pairs, strict=False)}
            x = layer(x, turns[self.rope_of[index]], start, caches[2 * index], caches[2 * index + 1], sides)
        logits: torch.Tensor = self.head(self.norm(x.index_select(1, rows)))
        if self.logit_cap is not None:
            return torch.tanh(logits * (self.logit_scale / self.logit_cap)) * self.logit_cap
        return logits if self.logit_scale == 1 else logits * self.logit_scale

    def read(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Compute logits (S, vocabulary) of a whole text, given as token ids (S,) int64."""
        positions = torch.arange(len(token_ids))
        caches = [torch.zeros((1, len(token_ids), *self.cache_shape)) for _ in range(2 * len(self.layers))]
        logits: torch.Tensor = self(token_ids[None], positions, positions, caches, ())[0]
        return logits


class _Turn(nn.Module):
    """Computes cosines and sines (1, S, 1, head_dim) of positions (S,); values that don't rotate have 1 and 0."""

    def __init__(self, rope: Rope | None, head_dim: int) -> None:
        super().__init__()
        half = () if rope is None else rope.inverse_frequencies
        still = head_dim - 2 * len(half)
        self.rotates, factor = rope is not None, 1.0 if rope is None else rope.attention_factor
        self.register_buffer("frequencies", torch.tensor([(*half, *half, *[0.0] * still)], dtype=torch.float32))
        factors = torch.tensor([factor] * (head_dim - still) + [1.0] * still)
        self.register_buffer("factors", None if factor == 1 else factors)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self.rotates:
            return None
        angles = (positions.to(torch.float32)[:, None] * self.frequencies)[None, :, None]
        cosine, sine = torch.cos(angles), torch.sin(angles)
        return (cosine, sine) if self.factors is None else (cosine * self.factors, sine * self.factors)


class _Layer(nn.Module):
    def __init__(
        self,
        a: Architecture,
        prefix: str,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], NDArray[np.float32]],
    ) -> None:
        super().__init__()
        self.activation = a.activation

        def joined(block: str, names: Sequence[str], bias: bool) -> nn.Module:
            sources = [f"{prefix}{block}.{name}_proj." for name in names]
            biases = [vector(source + "bias") for source in sources] if bias else []
            return JoinedLinear([matrix(source + "weight") for source in sources], biases)

        self.qkv = joined("self_attn", "qkv", a.qkv_bias)
        self.o = joined("self_attn", "o", a.o_bias)
        self.gate_up = joined("mlp", ("gate", "up"), a.mlp_bias)
        self.down = joined("mlp", ("down",), a.mlp_bias)
        places = (a.norms.before_attention, a.norms.after_attention, a.norms.before_mlp, a.norms.after_mlp)
        norms = [nn.Identity() if name is None else _norm(a, f"{prefix}{name}.weight", vector) for name in places]
        self.input_norm, self.attention_norm, self.post_norm, self.mlp_norm = norms
        self.residual_scale = a.residual_scale
        self.heads = _Heads(a, vector, prefix + "self_attn.")
        self.query_width, self.intermediate = a.query_width, a.intermediate

    def forward(
        self,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
        start: int,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        adapter: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Run one layer; `adapter` is keyed by site name, see `DecoderModel.forward`."""
        normed = self.input_norm(x)
        query, key, value = self.heads(_adapted(self.qkv(normed), normed, adapter.get("qkv")), turn)
        attended = cached_attention(query, key, value, key_cache, value_cache, start).view(1, -1, self.query_width)
        x = x + self._scaled(self.attention_norm(_adapted(self.o(attended), attended, adapter.get("o"))))
        normed = self.post_norm(x)
        gate, up = _adapted(self.gate_up(normed), normed, adapter.get("gate_up")).split(self.intermediate, -1)
        active = self._activate(gate) * up
        return x + self._scaled(self.mlp_norm(_adapted(self.down(active), active, adapter.get("down"))))

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.residual_scale == 1 else x * self.residual_scale

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation == "gelu":
            return functional.gelu(x)
        # The delegate would replace the approximate GELU by the exact one, so it is written out, with
        # (1 + tanh(z)) / 2 = sigmoid(2 z).
        if self.activation == "gelu_tanh":
            return x * torch.sigmoid((x * x * 0.044715 + 1) * x * (2 * math.sqrt(2 / math.pi)))
        return functional.silu(x)


def _adapted(output: torch.Tensor, x: torch.Tensor, adapter: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Add x @ A @ B to the output."""
    if adapter is None:
        return output
    a, b = adapter
    return output + torch.bmm(torch.bmm(x, a), b)


def _norm(a: Architecture, name: str, vector: Callable[[str], NDArray[np.float32]]) -> nn.Module:
    """Make a norm over the hidden states; `name` is that of its weight."""
    if a.norm_kind == "rms":
        return _Norm(a, vector(name))
    return _LayerNorm(a, vector(name), vector(name.removesuffix("weight") + "bias"))


class _Norm(nn.Module):
    """RMS norm over the last axis; its weight (..., width) may vary along the others."""

    def __init__(self, a: Architecture, weight: NDArray[np.float32]) -> None:
        super().__init__()
        width = weight.shape[-1]
        self.register_buffer("mean", torch.full((1, width), 1 / width))
        self.register_buffer("epsilon", torch.full((1,), a.norm_eps))
        self.register_buffer("weight", torch.tensor(weight) + a.norm_offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x (..., width)."""
        return x * torch.rsqrt(functional.linear(x * x, self.mean, self.epsilon)) * self.weight


class _LayerNorm(_Norm):
    def __init__(self, a: Architecture, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        super().__init__(a, weight)
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x (..., width)."""
        normed: torch.Tensor = super().forward(x - functional.linear(x, self.mean)) + self.bias
        return normed


class _Heads(nn.Module):
    """Splits packed q, k and v (1, S, all heads * head_dim) into rotated queries, rotated keys and values."""

    def __init__(self, a: Architecture, vector: Callable[[str], NDArray[np.float32]], prefix: str) -> None:
        super().__init__()
        self.counts = [a.heads, a.kv_heads, a.kv_heads]
        self.widths = [count * a.head_dim for count in self.counts]
        self.shape = (1, -1, sum(self.counts), a.head_dim)
        # The kernel divides scores by sqrt(head_dim).
        self.scale = a.query_scale * a.head_dim**0.5
        self.whole: nn.ModuleList | None = None
        self.norm: nn.Module = nn.Identity()
        if a.head_norms != "none":
            query, key = (vector(f"{prefix}{name}.weight") for name in ("q_norm", "k_norm"))
            if a.head_norms == "whole":
                self.whole = nn.ModuleList((_Norm(a, query), _Norm(a, key)))
            else:
                # Values pass through the norm too, but its result is not used for them.
                self.norm = _Norm(a, np.stack((query, key, key)).repeat(self.counts, axis=0))
        half = len(a.rope.inverse_frequencies)
        quarter = torch.zeros(a.head_dim, a.head_dim)
        quarter[:half, half : 2 * half] = -torch.eye(half)
        quarter[half : 2 * half, :half] = torch.eye(half)
        self.register_buffer("quarter", quarter)

    def forward(
        self, packed: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotate by `turn`, cosines and sines of (1, S, 1, head_dim); returns three times (1, S, heads, head_dim)."""
        if self.whole is not None:
            query, key, value = packed.split(self.widths, -1)
            packed = torch.cat((self.whole[0](query), self.whole[1](key), value), -1)
        apart = packed.view(self.shape)
        x = self.norm(apart)
        if turn is not None:
            cosine, sine = turn
            x = x * cosine + functional.linear(x, self.quarter) * sine
        query, key, _ = x.split(self.counts, 2)
        if abs(self.scale - 1) > 1e-6:
            query = query * self.scale
        return query, key, apart.split(self.counts, 2)[2]
