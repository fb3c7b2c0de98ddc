"""Runs the decoder on ExecuTorch: a stateless program that takes KV caches and adapters as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.decoders.buffered_sequence import BufferedSequence
from edge_runtime.decoders.executorch_program import ExecuTorchProgram


class ExecuTorchDecoder(BufferedSequence):
    """A sequence over a program of kind "executorch"; see `edge_runtime.decoders.protocol.Decoder`.

    Not thread-safe; forks may run in different threads, and their calls are serialised.
    """

    def __init__(self, program: ExecuTorchProgram, context_length: int) -> None:
        super().__init__(program, context_length, tokens_before_heads=True)
        self._program = program
        self._lora = program.no_adapter
        self._bind_buffers()

    def fork(self) -> ExecuTorchDecoder:
        """Return a new, empty sequence over the same weights and with the same adapter."""
        other = ExecuTorchDecoder(self._program, self.context_length)
        other.use_adapter(self._adapter)
        return other

    def _run(self, past: int, chunk: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        count, program = len(chunk), self._program
        # The program always computes at least one row; if none was requested, the row is ignored.
        rows = np.arange(count - max(len(logits), 1), count, dtype=np.int64)
        positions = np.arange(past, past + count, dtype=np.int64)
        inputs = (chunk.reshape(1, count), positions, rows)
        program.run([*map(program.tensor, inputs), *self._caches, *self._lora], logits)

    def _longest_chunk(self) -> int:
        return self._program.chunk

    def _bind_adapter(self, adapter: Adapter | None) -> None:
        program = self._program
        packed: Mapping[str, Any] = {} if adapter is None else program.adapters.get(adapter)
        nothing = zip(program.lora_names, program.no_adapter, strict=True)
        self._lora = [packed.get(name, zeros) for name, zeros in nothing]

    def _release_buffers(self) -> None:
        self._caches: list[Any] = []

    def _bind_buffers(self) -> None:
        self._caches = [self._program.tensor(array) for array in self._cache.arrays]
