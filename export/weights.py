"""What the graph writer needs of a model's weights, whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

    from export.architecture import Architecture
    from export.quantize import QuantizedMatrix

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where weights came from.

    Attributes:
        kind: "gguf" or "huggingface".
        name: the file's or directory's name.
        sha256: of the weights.
        model_id, revision: for people; revision "" where unknown.
        license: SPDX identifier or "unknown".
        parameters: how many numbers the model has.
    """

    kind: str
    name: str
    sha256: str
    model_id: str
    revision: str
    license: str
    parameters: int


@dataclass(frozen=True, slots=True)
class TokenizerAssets:
    """A tokenizer as a bundle carries it: `json` is the text of `tokenizer.json`, compact."""

    json: str
    chat_template: str
    bos_token: str
    eos_token: str
    stop_token_ids: tuple[int, ...]


class WeightSource(Protocol):
    """A model's weights by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`), read when asked for."""

    architecture: Architecture
    path: Path

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32; matrices are (out_features, in_features).

        Raises:
            SourceError: there is no such tensor, or the file is damaged.
        """
        ...

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """The matrix exactly as the source quantized it; None where it is dense there."""
        ...

    def quantization(self) -> str:
        """How the source quantized its matrices, in words."""
        ...

    def provenance(self) -> Provenance:
        """Where the weights come from (hashes the files)."""
        ...

    def tokenizer(self) -> TokenizerAssets:
        """The model's tokenizer.

        Raises:
            SourceError: there is none, or it can't be read.
        """
        ...
