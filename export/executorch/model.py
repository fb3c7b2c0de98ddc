"""A Llama-family decoder as a torch module in the form that ExecuTorch's XNNPACK delegate likes, apart from lowering.

A step of decoding costs by the number of its operations more than by their size, so there are few: q, k and v are one
product, as are gate and up; queries and keys are turned as one (and values with them, for nothing); the mean of an RMS
norm and the turn of a head by a quarter are products with constant matrices.
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


class DecoderModel(nn.Module):
    """The whole decoder; it holds weights and no state."""

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
            matrix: a weight matrix by its Hugging Face name, in the form in which it is to be stored.
            vector: a norm's weight or a bias by its name.
            adapter_sites: where it takes an adapter; each place costs time, with an adapter and without one.
        """
        super().__init__()
        a = architecture
        self.architecture = a
        self.lora_sites = lora_sites(a, adapter_sites)
        self.cache_shape = (a.kv_heads, a.head_dim)
        self.embedding_scale = a.embedding_scale
        self.rope_factor = a.rope.attention_factor
        table = matrix(EMBEDDING)
        self.embedding = embedding_module(table)
        self.register_buffer("frequencies", torch.tensor([a.rope.inverse_frequencies], dtype=torch.float32))
        self.layers = nn.ModuleList(_Layer(a, f"model.layers.{index}.", matrix, vector) for index in range(a.layers))
        self.norm = _Norm(a, vector(FINAL_NORM))
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
            rows: (R,) int64, which of the tokens' logits are wanted.
            caches: key and value of each layer, (1, capacity, kv_heads, head_dim) float32; changed in place.
            adapter: A (1, in_features, r) and B (1, r, out_features) float32 for each layer and site
                (`lora_sites`); or nothing.

        Returns:
            Logits (1, R, vocabulary) float32.
        """
        start = positions[0].item()
        torch._check(start >= 0)
        angles = positions.to(torch.float32)[:, None] * self.frequencies
        angles = torch.cat((angles, angles), -1)[None, :, None]
        cosine, sine = torch.cos(angles), torch.sin(angles)
        turn = (cosine, sine) if self.rope_factor == 1 else (cosine * self.rope_factor, sine * self.rope_factor)
        x = self.embedding(token_ids)
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        pairs = iter(zip(adapter[::2], adapter[1::2], strict=True))
        for index, layer in enumerate(self.layers):
            sides = {site.name: pair for site, pair in zip(self.lora_sites, pairs, strict=False)}
            x = layer(x, turn, start, caches[2 * index], caches[2 * index + 1], sides)
        logits: torch.Tensor = self.head(self.norm(x.index_select(1, rows)))
        return logits

    def read(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits (S, vocabulary) of a whole text: token ids (S,) int64."""
        positions = torch.arange(len(token_ids))
        caches = [torch.zeros((1, len(token_ids), *self.cache_shape)) for _ in range(2 * len(self.layers))]
        logits: torch.Tensor = self(token_ids[None], positions, positions, caches, ())[0]
        return logits


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
        self.input_norm = _Norm(a, vector(prefix + "input_layernorm.weight"))
        self.post_norm = _Norm(a, vector(prefix + "post_attention_layernorm.weight"))
        self.heads = _Heads(a, vector, prefix + "self_attn.")
        self.query_width, self.intermediate = a.query_width, a.intermediate

    def forward(
        self,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        start: int,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        adapter: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """One layer, `adapter` by the names of its sites; see `DecoderModel.forward`."""
        normed = self.input_norm(x)
        query, key, value = self.heads(_adapted(self.qkv(normed), normed, adapter.get("qkv")), turn)
        attended = cached_attention(query, key, value, key_cache, value_cache, start).view(1, -1, self.query_width)
        x = x + _adapted(self.o(attended), attended, adapter.get("o"))
        normed = self.post_norm(x)
        gate, up = _adapted(self.gate_up(normed), normed, adapter.get("gate_up")).split(self.intermediate, -1)
        active = self._activate(gate) * up
        return x + _adapted(self.down(active), active, adapter.get("down"))

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation == "gelu":
            return functional.gelu(x)
        # The delegate would compute the exact GELU for its approximation, so that is written out: with a sigmoid,
        # because (1 + tanh(z)) / 2 = sigmoid(2 z).
        if self.activation == "gelu_tanh":
            return x * torch.sigmoid((x * x * 0.044715 + 1) * x * (2 * math.sqrt(2 / math.pi)))
        return functional.silu(x)


def _adapted(output: torch.Tensor, x: torch.Tensor, adapter: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """The output with its x @ A @ B."""
    if adapter is None:
        return output
    a, b = adapter
    return output + torch.bmm(torch.bmm(x, a), b)


class _Norm(nn.Module):
    """RMS norm over the last axis; its weight (..., width) may differ along others."""

    def __init__(self, a: Architecture, weight: NDArray[np.float32]) -> None:
        super().__init__()
        width = weight.shape[-1]
        self.register_buffer("mean", torch.full((1, width), 1 / width))
        self.register_buffer("epsilon", torch.full((1,), a.norm_eps))
        self.register_buffer("weight", torch.tensor(weight) + a.norm_offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape (..., width)."""
        return x * torch.rsqrt(functional.linear(x * x, self.mean, self.epsilon)) * self.weight


class _Heads(nn.Module):
    """Packed q, k and v (1, S, all heads * head_dim) as rotated queries and keys, and values."""

    def __init__(self, a: Architecture, vector: Callable[[str], NDArray[np.float32]], prefix: str) -> None:
        super().__init__()
        self.counts = [a.heads, a.kv_heads, a.kv_heads]
        self.shape = (1, -1, sum(self.counts), a.head_dim)
        if a.head_norms:
            query, key = (vector(f"{prefix}{name}.weight") for name in ("q_norm", "k_norm"))
            # Values go through as well, and are then taken from before.
            self.norm: nn.Module = _Norm(a, np.stack((query, key, key)).repeat(self.counts, axis=0))
        else:
            self.norm = nn.Identity()
        half = torch.eye(a.head_dim // 2)
        nothing = torch.zeros_like(half)
        self.register_buffer("quarter", torch.cat((torch.cat((nothing, -half), 1), torch.cat((half, nothing), 1))))

    def forward(
        self, packed: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`turn` holds cosines and sines, (1, S, 1, head_dim) each; gives (1, S, heads, head_dim) three times."""
        cosine, sine = turn
        apart = packed.view(self.shape)
        x = self.norm(apart)
        query, key, _ = (x * cosine + functional.linear(x, self.quarter) * sine).split(self.counts, 2)
        return query, key, apart.split(self.counts, 2)[2]
