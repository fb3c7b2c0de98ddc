"""The decoder on ExecuTorch: a program without state, whose KV caches and adapters are its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.packed_cache import adapter_identity
from edge_runtime.bundle.manifest import DecoderSpec
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.executorch_program import ExecuTorchProgram
from edge_runtime.decoders.kv_cache import KeyValueCache
from edge_runtime.decoders.prompt_check import check_prompt_cache, checked_context_length
from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.decoders.sequence import TokenSequence


class ExecuTorchDecoder(TokenSequence):
    """A sequence over a program of kind "executorch"; see `edge_runtime.decoders.protocol.Decoder`.

    Not for use from two threads at once; forks may run in different threads, one call after the other.
    """

    def __init__(self, program: ExecuTorchProgram, context_length: int) -> None:
        super().__init__(program.vocab_size, context_length, program.fingerprint)
        self._program = program
        self._adapter: Adapter | None = None
        spec = program.spec
        self._cache = KeyValueCache(spec.layers, spec.kv_heads, spec.head_dim, context_length, tokens_before_heads=True)
        self._caches = [program.tensor(array) for array in self._cache.arrays]
        self._lora = program.no_adapter

    @classmethod
    def open(
        cls, bundle: Bundle, spec: DecoderSpec, *, threads: int | None = None, context_length: int | None = None
    ) -> ExecuTorchDecoder:
        """Load the decoder's program; see `edge_runtime.decoders.open.open_decoder`."""
        program = ExecuTorchProgram(bundle, spec, threads)
        return cls(program, checked_context_length(context_length, program.context_length))

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Use this adapter from the next `extend` on; where it differs from the one in use, the cache is emptied.

        Raises:
            AdapterError: it was trained on another base, or its shapes don't fit.
        """
        if adapter_identity(adapter) == adapter_identity(self._adapter):
            return
        program = self._program
        packed: Mapping[str, Any] = {} if adapter is None else program.adapters.get(adapter)
        nothing = zip(program.lora_names, program.no_adapter, strict=True)
        self._lora = [packed.get(name, zeros) for name, zeros in nothing]
        self._adapter = adapter
        self._forget()

    def save(self, length: int | None = None) -> PromptCache:
        """Copy the KV state of the first `length` tokens (all where None)."""
        length = self._checked_length(self.length if length is None else length)
        keys, values = self._cache.copy_out(length)
        return PromptCache(self.fingerprint, adapter_identity(self._adapter), self.token_ids[:length], keys, values)

    def restore(self, cache: PromptCache) -> None:
        """Continue from a saved state.

        Raises:
            PromptCacheError: it was made by another model or with another adapter, or does not fit.
        """
        spec = self._program.spec
        shape = (spec.layers, spec.kv_heads, len(cache.token_ids), spec.head_dim)
        check_prompt_cache(cache, self, adapter_identity(self._adapter), shape)
        self._make_room(len(cache.token_ids), 0)
        self._cache.copy_in(cache.keys, cache.values)
        self._forget(cache.token_ids)

    def fork(self) -> ExecuTorchDecoder:
        """Another, empty sequence over the same weights and with the same adapter."""
        other = ExecuTorchDecoder(self._program, self.context_length)
        other.use_adapter(self._adapter)
        return other

    def _feed(self, token_ids: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        self._make_room(self.length + len(token_ids), self.length)
        logits = np.empty((rows, self.vocab_size), np.float32)
        done, before_rows = 0, len(token_ids) - rows
        for chunk in np.array_split(token_ids, -(-len(token_ids) // self._program.chunk)):
            end = done + len(chunk)
            self._run(self.length + done, chunk, logits[max(done - before_rows, 0) : max(end - before_rows, 0)])
            done = end
        return logits

    def _run(self, past: int, chunk: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """One call: `chunk` goes into the cache behind `past` tokens, its last rows' logits into `logits`."""
        count, program = len(chunk), self._program
        # The program computes one row at least; nobody reads it where none is wanted.
        rows = np.arange(count - max(len(logits), 1), count, dtype=np.int64)
        positions = np.arange(past, past + count, dtype=np.int64)
        inputs = (chunk.reshape(1, count), positions, rows)
        program.run([*map(program.tensor, inputs), *self._caches, *self._lora], logits)

    def _make_room(self, tokens: int, used: int) -> None:
        if tokens > self._cache.capacity:
            self._caches = []  # they hold the old buffers, which are to go one by one as the new ones fill
            self._cache.reserve(tokens, used)
            self._caches = [self._program.tensor(array) for array in self._cache.arrays]
