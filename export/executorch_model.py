"""A Llama-family decoder as a torch module in the form that ExecuTorch's XNNPACK delegate likes, apart from lowering.

Between two attentions there is nothing that the delegate can't take, so that it is called once a layer: projections are
apart, because it can't slice what has a dynamic length; the mean of an RMS norm and the turn of a head by a quarter are
products with constant matrices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from edge_runtime.manifest import LoraSite
from export.executorch_attention import cached_attention
from export.executorch_linear import embedding_module, head_module, shared_linears
from export.weights import EMBEDDING, FINAL_NORM, HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from export.architecture import Architecture
    from export.linear import Matrix


def lora_sites(architecture: Architecture) -> tuple[LoraSite, ...]:
    """The places of every layer that take an adapter: each projection is its own."""
    a = architecture
    return (
        LoraSite("q", a.hidden, (("q_proj", a.query_width),)),
        LoraSite("k", a.hidden, (("k_proj", a.kv_width),)),
        LoraSite("v", a.hidden, (("v_proj", a.kv_width),)),
        LoraSite("o", a.query_width, (("o_proj", a.hidden),)),
        LoraSite("gate", a.hidden, (("gate_proj", a.intermediate),)),
        LoraSite("up", a.hidden, (("up_proj", a.intermediate),)),
        LoraSite("down", a.intermediate, (("down_proj", a.hidden),)),
    )


class DecoderModel(nn.Module):
    """The whole decoder; it holds weights and no state."""

    def __init__(
        self,
        architecture: Architecture,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], NDArray[np.float32]],
    ) -> None:
        """Gather the weights.

        Args:
            architecture: the decoder's shape.
            matrix: a weight matrix by its Hugging Face name, in the form in which it is to be stored.
            vector: a norm's weight or a bias by its name.
        """
        super().__init__()
        a = architecture
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
            adapter: A (1, in_features, r) and B (1, r, out_features) float32 for each layer and site.

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
        width = len(adapter) // len(self.layers)
        for index, layer in enumerate(self.layers):
            sides = adapter[index * width : (index + 1) * width]
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

        def linears(block: str, names: Sequence[str], bias: bool) -> nn.Module:
            sources = [f"{prefix}{block}.{name}_proj." for name in names]
            biases = [vector(source + "bias") for source in sources] if bias else []
            return shared_linears([matrix(source + "weight") for source in sources], biases)

        self.qkv = linears("self_attn", "qkv", a.qkv_bias)
        self.o = linears("self_attn", "o", a.o_bias)
        self.gate_up = linears("mlp", ("gate", "up"), a.mlp_bias)
        self.down = linears("mlp", ("down",), a.mlp_bias)
        self.input_norm = _Norm(a, vector(prefix + "input_layernorm.weight"))
        self.post_norm = _Norm(a, vector(prefix + "post_attention_layernorm.weight"))
        self.query_heads = _Heads(a, a.heads, vector, prefix + "self_attn.q_norm.weight")
        self.key_heads = _Heads(a, a.kv_heads, vector, prefix + "self_attn.k_norm.weight")
        self.value_shape = (1, -1, a.kv_heads, a.head_dim)
        self.query_width = a.query_width

    def forward(
        self,
        x: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        start: int,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        adapter: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """One layer; see `DecoderModel.forward`."""
        normed = self.input_norm(x)
        q, k, v = _adapted(self.qkv(normed), normed, adapter[:6])
        attended = cached_attention(
            self.query_heads(q, turn), self.key_heads(k, turn), v.view(self.value_shape), key_cache, value_cache, start
        ).view(1, -1, self.query_width)
        (o,) = _adapted(self.o(attended), attended, adapter[6:8])
        x = x + o
        normed = self.post_norm(x)
        gate, up = _adapted(self.gate_up(normed), normed, adapter[8:12])
        active = self._activate(gate) * up
        (down,) = _adapted(self.down(active), active, adapter[12:])
        return x + down

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation == "gelu":
            return functional.gelu(x)
        # The delegate would compute the exact GELU for its approximation, so that is written out: with a sigmoid,
        # because (1 + tanh(z)) / 2 = sigmoid(2 z).
        if self.activation == "gelu_tanh":
            return x * torch.sigmoid((x * x * 0.044715 + 1) * x * (2 * math.sqrt(2 / math.pi)))
        return functional.silu(x)


def _adapted(
    outputs: Sequence[torch.Tensor], x: torch.Tensor, adapter: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Each output with its x @ A @ B."""
    if not adapter:
        return tuple(outputs)
    pairs = zip(outputs, adapter[::2], adapter[1::2], strict=True)
    return tuple(output + torch.bmm(torch.bmm(x, a), b) for output, a, b in pairs)


class _Norm(nn.Module):
    """RMS norm over the last axis."""

    def __init__(self, a: Architecture, weight: NDArray[np.float32]) -> None:
        super().__init__()
        self.epsilon = a.norm_eps
        self.register_buffer("mean", torch.full((1, len(weight)), 1 / len(weight)))
        self.register_buffer("weight", torch.tensor(weight) + a.norm_offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape (..., width)."""
        return x * torch.rsqrt(functional.linear(x * x, self.mean) + self.epsilon) * self.weight


class _Heads(nn.Module):
    """Packed heads (1, S, heads * head_dim) as rotated ones: (1, S, heads, head_dim)."""

    def __init__(self, a: Architecture, heads: int, vector: Callable[[str], NDArray[np.float32]], norm: str) -> None:
        super().__init__()
        self.shape = (1, -1, heads, a.head_dim)
        self.norm = _Norm(a, vector(norm)) if a.head_norms else nn.Identity()
        half = torch.eye(a.head_dim // 2)
        nothing = torch.zeros_like(half)
        self.register_buffer("quarter", torch.cat((torch.cat((nothing, -half), 1), torch.cat((half, nothing), 1))))

    def forward(self, packed: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """`turn` holds cosines and sines, (1, S, 1, head_dim) each."""
        cosine, sine = turn
        x = self.norm(packed.view(self.shape))
        return x * cosine + functional.linear(x, self.quarter) * sine
