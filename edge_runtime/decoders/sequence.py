"""What every decoder backend does alike: checks before anything is fed, the tokens in the cache, rewinding."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import CogenesisError, ContextOverflowError


class TokenSequence(ABC):
    """Half of a `edge_runtime.decoders.protocol.Decoder`; a backend adds `_feed` and the rest of the protocol."""

    def __init__(self, vocab_size: int, context_length: int, fingerprint: str) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.fingerprint = fingerprint
        self._token_ids: list[int] = []
        self._fed_by = threading.Lock()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens in the KV cache."""
        return tuple(self._token_ids)

    @property
    def length(self) -> int:
        """How many tokens are in the KV cache."""
        return len(self._token_ids)

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Feed tokens and return the logits of the last `rows` of them: (rows, vocab_size) float32, the caller's own.

        Long inputs are prefilled in chunks; only the rows asked for go through the head.

        Raises:
            ContextOverflowError: the cache would pass `context_length`; nothing was fed.
            ValueError: no tokens, an id outside the vocabulary, or rows outside 0 .. len(token_ids).
            CogenesisError: another thread feeds this sequence.
        """
        # Kernels index the embedding and the rotary table without looking: nothing unchecked may reach them.
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
        # Two threads in one sequence would have the kernels write through each other's pointers.
        if not self._fed_by.acquire(blocking=False):
            raise CogenesisError("Another thread feeds this sequence. Give each thread its own fork.")
        try:
            logits = self._feed(np.array(tokens, np.int64), rows)
            self._token_ids.extend(tokens)
        finally:
            self._fed_by.release()
        return logits

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises:
            ValueError: length is negative or beyond the current one.
        """
        del self._token_ids[self._checked_length(length) :]

    def _checked_length(self, length: int) -> int:
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be in 0 .. {self.length}, not {length}")
        return length

    def _forget(self, token_ids: Sequence[int] = ()) -> None:
        """Start over with these tokens taken as fed."""
        self._token_ids = list(token_ids)

    @abstractmethod
    def _feed(self, token_ids: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """Put tokens, already checked, behind the present ones and return the logits of the last `rows`."""
