"""Runs a sequence over a graph that writes new tokens into the caller's KV buffers and takes adapters as inputs."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.packed_cache import adapter_identity
from edge_runtime.decoders.kv_cache import KeyValueCache
from edge_runtime.decoders.model import DecoderModel
from edge_runtime.decoders.prompt_check import check_prompt_cache
from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.decoders.sequence import TokenSequence


class BufferedSequence(TokenSequence):
    """A `TokenSequence` with a `KeyValueCache` and an adapter; a backend adds the calls of its graph."""

    def __init__(self, model: DecoderModel, context_length: int, *, tokens_before_heads: bool = False) -> None:
        super().__init__(model, context_length)
        self._spec = model.spec
        self._adapter: Adapter | None = None
        self._cache = KeyValueCache(
            self._spec.layers,
            self._spec.kv_heads,
            self._spec.head_dim,
            context_length,
            tokens_before_heads=tokens_before_heads,
        )

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Use this adapter from the next `extend` on; if it differs from the one in use, the cache is cleared.

        Raises:
            AdapterError: the adapter was trained on another base, or its shapes don't fit.
        """
        if adapter_identity(adapter) == adapter_identity(self._adapter):
            return
        self._bind_adapter(adapter)
        self._adapter = adapter
        self._forget()

    def save(self, length: int | None = None) -> PromptCache:
        """Copy the KV state of the first `length` tokens (None: all)."""
        length = self._checked_length(self.length if length is None else length)
        keys, values = self._cache.copy_out(length)
        return PromptCache(self.fingerprint, adapter_identity(self._adapter), self.token_ids[:length], keys, values)

    def restore(self, cache: PromptCache) -> None:
        """Continue from a saved state.

        Raises:
            PromptCacheError: the state was made by another model or with another adapter, or does not fit.
        """
        check_prompt_cache(cache, self, adapter_identity(self._adapter), self._spec)
        self._make_room(len(cache.token_ids), 0)
        self._cache.copy_in(cache.keys, cache.values)
        self._forget(cache.token_ids)

    def _feed(self, token_ids: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        self._make_room(self.length + len(token_ids), self.length)
        logits = np.empty((rows, self.vocab_size), np.float32)
        done, before_rows = 0, len(token_ids) - rows
        # Chunks of equal length, because a last chunk of one row would cost as much as one of eight.
        for chunk in np.array_split(token_ids, -(-len(token_ids) // self._longest_chunk())):
            end = done + len(chunk)
            self._run(self.length + done, chunk, logits[max(done - before_rows, 0) : max(end - before_rows, 0)])
            done = end
        return logits

    def _make_room(self, tokens: int, used: int) -> None:
        if tokens > self._cache.capacity:
            self._release_buffers()  # lets each old buffer be freed once its new one is filled
            self._cache.reserve(tokens, used)
            self._bind_buffers()

    @abstractmethod
    def _longest_chunk(self) -> int:
        """Maximum number of tokens per call."""

    @abstractmethod
    def _run(self, past: int, chunk: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Run the graph once: append `chunk` to `past` cached tokens and write its last logits into `logits`."""

    @abstractmethod
    def _bind_adapter(self, adapter: Adapter | None) -> None:
        """Bind this adapter's matrices to the graph; after an `AdapterError` the current ones stay in use."""

    @abstractmethod
    def _release_buffers(self) -> None:
        """Release the graph's references to the current KV buffers."""

    @abstractmethod
    def _bind_buffers(self) -> None:
        """Bind the current KV buffers to the graph."""
