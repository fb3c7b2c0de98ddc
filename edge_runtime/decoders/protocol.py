"""The decoder protocol: a causal language model with a KV cache, one sequence at a time, behind any backend."""

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

    Logits are raw (not normalised) float32 rows of `vocab_size`; row i belongs to the i-th token fed and predicts the
    token after it.
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
        """How many tokens are in the KV cache."""
        ...

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Feed tokens and return the logits of the last `rows` of them: (rows, vocab_size) float32, the caller's own.

        Long inputs are prefilled in chunks; only the rows asked for go through the head.

        Raises:
            ContextOverflowError: the cache would pass `context_length`; nothing was fed.
            ValueError: no tokens, an id outside the vocabulary, or rows outside 0 .. len(token_ids).
        """
        ...

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens, in constant time.

        Raises:
            ValueError: length is negative or beyond the current one.
        """
        ...

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Use this adapter from the next `extend` on; where it differs from the one in use, the cache is emptied.

        Raises:
            AdapterError: it was trained on another base, or its shapes don't fit.
        """
        ...

    def save(self, length: int | None = None) -> PromptCache:
        """Copy the KV state of the first `length` tokens (all where None)."""
        ...

    def restore(self, cache: PromptCache) -> None:
        """Continue from a saved state.

        Raises:
            PromptCacheError: it was made by another model or with another adapter.
        """
        ...

    def fork(self) -> Decoder:
        """Another, empty sequence over the same weights and with the same adapter."""
        ...
