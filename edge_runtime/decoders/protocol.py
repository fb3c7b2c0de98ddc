"""Defines the decoder protocol: one sequence of a causal language model with a KV cache, on any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter


@dataclass(frozen=True, eq=False, slots=True)
class PromptCache:
    """The KV state of a prefix. It holds private text in another form: keep it as safe as the profile.

    Attributes:
        model: fingerprint of the decoder's weights (`Decoder.fingerprint`).
        adapter: fingerprint of the adapter in use, "" for none.
        token_ids: the prefix.
        keys: (layers, kv_heads, len(token_ids), head_dim), the decoder's cache type.
        values: same shape.
    """

    model: str
    adapter: str
    token_ids: tuple[int, ...]
    keys: NDArray[np.generic]
    values: NDArray[np.generic]


class Decoder(Protocol):
    """One sequence of a causal language model.

    Logits are raw (not normalised) float32 rows of `vocab_size`; row i predicts the token after the i-th token fed.
    """

    vocab_size: int
    context_length: int
    fingerprint: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens in the KV cache."""
        ...

    @property
    def length(self) -> int:
        """Number of tokens in the KV cache."""
        ...

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Feed tokens and return logits of the last `rows` of them: (rows, vocab_size) float32, owned by the caller.

        Long inputs are prefilled in chunks; logits are computed only for the requested rows.

        Raises:
            ContextOverflowError: the cache would exceed `context_length`; nothing was fed.
            ValueError: no tokens, an id outside the vocabulary, or rows outside 0 .. len(token_ids).
        """
        ...

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens, in constant time.

        Raises:
            ValueError: `length` is negative or above the current length.
        """
        ...

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Use this adapter from the next `extend` on; if it differs from the one in use, the cache is cleared.

        Raises:
            AdapterError: the adapter was trained on another base, or its shapes don't fit.
        """
        ...

    def save(self, length: int | None = None) -> PromptCache:
        """Copy the KV state of the first `length` tokens (None: all)."""
        ...

    def restore(self, cache: PromptCache) -> None:
        """Continue from a saved state.

        Raises:
            PromptCacheError: the state was made by another model or with another adapter.
        """
        ...

    def fork(self) -> Decoder:
        """Return a new, empty sequence over the same weights and with the same adapter."""
        ...
