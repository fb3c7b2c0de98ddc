"""Specifies a scorer: which model it loads, and what its network returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that scores; it is sent to other processes.

    Attributes:
        source: a bundle, or a model directory in Hugging Face format.
        identity: digest of its weights as stored.
        base: identity of the model, independent of its storage (`Bundle.base`).
        is_bundle: whether `source` is a bundle.
        adapter: adapter file, for a bundle.
        threads: number of CPU threads.
        device: device of a directory's model: "cpu", "cuda" or "cuda:1".
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
    """A cloud behind the bridge; it is sent to other processes."""

    address: str
    model: str
    api_key: str | None = None
    tls: bool = False


class Network(Protocol):
    """A causal language model that reads a full text at once."""

    vocab_size: int
    context_length: int

    def logits(self, token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        """Return raw logits at the last `rows` tokens, each predicting the next one: (rows, vocab_size) float32."""
        ...
