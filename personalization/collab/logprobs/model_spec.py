"""What a scorer is made of: which model, and what its network gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that scores; it travels to other processes.

    Attributes:
        source: a bundle, or a model directory in Hugging Face format.
        identity: digest of its weights, as they are stored.
        base: identity of the model, however it is stored (`Bundle.base`).
        is_bundle: which of both it is.
        adapter: file of an adapter, for a bundle.
        threads: of the processor.
        device: of a directory's model: "cpu", "cuda" or "cuda:1".
    """

    source: Path
    identity: str
    base: str
    is_bundle: bool
    adapter: Path | None = None
    threads: int = 2
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """A cloud behind the bridge; it travels to other processes."""

    address: str
    model: str
    api_key: str | None = None
    tls: bool = False


class Network(Protocol):
    """A causal language model that reads a whole text at once."""

    vocab_size: int
    context_length: int

    def logits(self, token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        """Raw logits of the last `rows` tokens, each predicting the one after it: (rows, vocab_size) float32."""
        ...
