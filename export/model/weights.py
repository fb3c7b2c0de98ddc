"""Defines the interface to a model's weights, independent of their file format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import TokenizerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from export.model.architecture import Architecture
    from export.model.quantized_matrix import QuantizedMatrix

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
FINAL_NORM_BIAS = "model.norm.bias"


def expected_names(architecture: Architecture) -> frozenset[str]:
    """Return the names of all tensors of a decoder."""
    a = architecture
    attention, mlp = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("gate_proj", "up_proj", "down_proj")
    norm_parts = ("weight", "bias") if a.norm_kind == "layer" else ("weight",)
    parts = [f"{norm}.{part}" for norm in a.norms.names() for part in norm_parts] + ["self_attn.o_proj.weight"]
    parts += [f"{name}.weight" for name in attention] + [f"mlp.{name}.weight" for name in mlp]
    parts += [f"{name}.bias" for name in attention if a.qkv_bias] + ["self_attn.o_proj.bias"] * a.o_bias
    parts += [f"mlp.{name}.bias" for name in mlp if a.mlp_bias]
    parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] if a.head_norms != "none" else []
    names = {f"model.layers.{layer}.{part}" for layer in range(a.layers) for part in parts}
    final = {FINAL_NORM, FINAL_NORM_BIAS} if a.norm_kind == "layer" else {FINAL_NORM}
    return frozenset(names | {EMBEDDING} | final | (set() if a.tied_head else {HEAD}))


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that weights came from.

    Attributes:
        kind: "gguf" or "huggingface".
        name: the file's or directory's name.
        sha256: digest of the weights.
        model_id, revision: for information only; revision is "" if unknown.
        license: SPDX identifier or "unknown".
    """

    kind: str
    name: str
    sha256: str
    model_id: str
    revision: str
    license: str


@dataclass(frozen=True, slots=True)
class Provenance(Origin):
    """Where weights came from, and how many numbers the model has."""

    parameters: int


@dataclass(frozen=True, slots=True)
class TokenizerAssets:
    """A tokenizer as a bundle stores it.

    `json` is the compact text of `tokenizer.json`. `special_tokens` are the chat template's other special tokens by
    name, such as `pad_token` and `unk_token`.
    """

    json: str
    chat_template: str
    bos_token: str
    eos_token: str
    stop_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    @property
    def template_tokens(self) -> dict[str, Any]:
        """All special tokens that the chat template gets; see `TokenizerSpec.template_tokens`."""
        spec = TokenizerSpec("", "", self.bos_token, self.eos_token, (), self.special_tokens)
        return spec.template_tokens


class WeightSource(Protocol):
    """A model's weights, read on demand by Hugging Face names (`model.layers.0.self_attn.q_proj.weight`)."""

    architecture: Architecture
    path: Path

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32; matrices are (out_features, in_features).

        Raises:
            SourceError: the tensor does not exist, or the file is damaged.
        """
        ...

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """Return the matrix exactly as the source quantized it, or None if the source stores it dense."""
        ...

    def quantization(self) -> str:
        """Describe the source's quantization in words."""
        ...

    def provenance(self) -> Provenance:
        """Return the origin of the weights; this hashes the files."""
        ...

    def tokenizer(self) -> TokenizerAssets:
        """Read the model's tokenizer.

        Raises:
            SourceError: there is no tokenizer, or it can't be read.
        """
        ...
