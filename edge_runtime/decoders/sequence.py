"""Implements the part that all decoder backends share: input checks, the tokens in the cache, and rewinding."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.decoders.model import DecoderModel
from edge_runtime.errors import CogenesisError, ContextOverflowError


class TokenSequence(ABC):
    """Half of an `edge_runtime.decoders.protocol.Decoder`; a backend adds `_feed` and the rest of the protocol."""

    def __init__(self, model: DecoderModel, context_length: int) -> None:
        self.vocab_size = model.vocab_size
        self.context_length = context_length
        self.fingerprint = model.fingerprint
        self._token_ids: list[int] = []
        self._fed_by = threading.Lock()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens in the KV cache."""
        return tuple(self._token_ids)

    @property
    def length(self) -> int:
        """Number of tokens in the KV cache."""
        return len(self._token_ids)

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Feed tokens and return logits of the last `rows` of them: (rows, vocab_size) float32, owned by the caller.

        Long inputs are prefilled in chunks; logits are computed only for the requested rows.

        Raises:
            ContextOverflowError: the cache would exceed `context_length`; nothing was fed.
            ValueError: no tokens, an id outside the vocabulary, or rows outside 0 .. len(token_ids).
            CogenesisError: another thread is feeding this sequence.
        """
        # Kernels index the embedding and the rotary table without bounds checks, so check every input here.
        tokens = [int(token) for token in token_ids]
        if not tokens:
            raise ValueError("there are no tokens to feed")
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must be in 0 .. {self.vocab_size - 1}")
        if not 0 <= rows <= len(tokens):
            raise ValueError(f"rows must be in 0 .. {len(tokens)}, not {rows}")
        if self.length + len(tokens) > self.context_length:
            raise ContextOverflowError(
                f"The text is longer than the model's context: {self.length + len(tokens):,} tokens, "
                f"{self.context_length:,} fit. Shorten the profile or the instruction."
            )
        # With two threads in one sequence, the kernels would overwrite each other's buffers.
        if not self._fed_by.acquire(blocking=False):
            raise CogenesisError("Another thread feeds this sequence. Give each thread its own fork.")
        try:
            logits = self._feed(np.array(tokens, np.int64), rows)
            self._token_ids.extend(tokens)
        finally:
            self._fed_by.release()
        return logits

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens.

        Raises:
            ValueError: `length` is negative or above the current length.
        """
        del self._token_ids[self._checked_length(length) :]

    def _checked_length(self, length: int) -> int:
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be in 0 .. {self.length}, not {length}")
        return length

    def _forget(self, token_ids: Sequence[int] = ()) -> None:
        """Reset the sequence, treating these tokens as already fed."""
        self._token_ids = list(token_ids)

    @abstractmethod
    def _feed(self, token_ids: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """Append checked tokens to the cached ones and return the logits of the last `rows`."""
