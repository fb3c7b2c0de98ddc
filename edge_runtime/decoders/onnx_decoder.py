"""Runs our decoder graph with shared KV buffers on onnxruntime; all sequences share one session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.packed_cache import PackedAdapters
from edge_runtime.bundle.manifest import ROLE_WEIGHTS, DecoderSpec
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.buffered_sequence import BufferedSequence
from edge_runtime.decoders.model import DecoderModel
from edge_runtime.decoders.onnx_session import graph_error, not_the_described_graph, open_session, ort_value
from edge_runtime.machine.linux_memory import MappedFile

# Tokens per call during prefill. Longer chunks are at most a few percent faster, but their activations and attention
# scores (heads x chunk x cache) need more of a phone's memory.
PREFILL_CHUNK, LONG_PREFILL_CHUNK = 256, 128
LONG_CACHE = 1024


class OnnxModel(DecoderModel):
    """The session, its mapped weights, the names of its caches, and the packed adapters of the most recent users."""

    def __init__(self, bundle: Bundle, spec: DecoderSpec, threads: int | None, *, spin: bool = True) -> None:
        super().__init__(bundle, spec)
        self.cache_names = _cache_names(self.spec.layers)
        weights = next((entry for entry in bundle.decoder_files(spec) if entry.role == ROLE_WEIGHTS), None)
        self.mapped = MappedFile(self.path if weights is None else bundle.path(weights.path))
        with self.mapped.opening():
            self.session = open_session(bundle, spec, threads, spin=spin)
        self._check_graph()
        self.adapters = PackedAdapters(bundle.base, spec, ort_value)

    def _check_graph(self) -> None:
        """Reject a graph that does not match the manifest, because its kernels would read out of bounds."""
        spec = self.spec
        inputs = {value.name: value for value in self.session.get_inputs()}
        optional = {value.name: value for value in self.session.get_overridable_initializers()}
        outputs = self.session.get_outputs()
        wanted: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "input_ids": ("tensor(int64)", (1, None)),
            "seqlens_k": ("tensor(int32)", (1,)),
            "total_sequence_length": ("tensor(int32)", (1,)),
            "rows": ("tensor(int64)", (None,)),
        }
        cache = ("tensor(float)", (1, spec.kv_heads, None, spec.head_dim))
        wanted |= {name: cache for name, _ in self.cache_names}
        lora: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        for layer in range(spec.layers):
            for site in spec.lora:
                width = sum(size for _, size in site.projections)
                lora[f"layers.{layer}.{site.name}.lora_A"] = ("tensor(float)", (site.in_features, None))
                lora[f"layers.{layer}.{site.name}.lora_B"] = ("tensor(float)", (None, width))
        logits = outputs[0].shape if outputs else []
        if (
            not _matches(inputs, wanted)
            or not _matches(optional, lora)
            or [value.name for value in outputs] != ["logits", *(name for _, name in self.cache_names)]
            or len(logits) != 2
            or logits[1] != self.vocab_size
        ):
            raise not_the_described_graph(self.path)


class OnnxDecoder(BufferedSequence):
    """A sequence over a graph of kind "shared_kv"; see `edge_runtime.decoders.protocol.Decoder`.

    Not thread-safe; forks may run in different threads.
    """

    def __init__(self, model: OnnxModel, context_length: int) -> None:
        super().__init__(model, context_length)
        self._model = model
        self._lora: Mapping[str, Any] = {}
        # The inputs of a step have fixed addresses, so a step of one token binds only its logits.
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros(1, np.int32)
        self._one_id = np.zeros((1, 1), np.int64)
        self._one_row = np.zeros(1, np.int64)
        self._bound_shape = (0, 0)
        self._io: Any = None
        self._bind_buffers()

    def fork(self) -> OnnxDecoder:
        """Return a new, empty sequence over the same weights and with the same adapter."""
        other = OnnxDecoder(self._model, self.context_length)
        other.use_adapter(self._adapter)
        return other

    def _run(self, past: int, chunk: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        count, rows = len(chunk), len(logits)
        io = self._io
        if count == 1 and rows == 1:
            self._one_id[0, 0] = chunk[0]
            if self._bound_shape != (1, 1):
                _bind_input(io, "input_ids", self._one_id)
                _bind_input(io, "rows", self._one_row)
        else:
            chunk = np.ascontiguousarray(chunk).reshape(1, count)
            row_ids = np.arange(count - rows, count, dtype=np.int64)
            _bind_input(io, "input_ids", chunk)
            _bind_input(io, "rows", row_ids)
        self._bound_shape = (count, rows)
        self._last[0], self._total[0] = past + count - 1, past + count
        _bind_output(io, "logits", logits)
        try:
            self._model.session.run_with_iobinding(io)
        except Exception as error:
            raise graph_error(self._model.path, "can't be run", error) from None
        if count >= LONG_PREFILL_CHUNK // 2:
            self._model.mapped.release()

    def _longest_chunk(self) -> int:
        return PREFILL_CHUNK if self._cache.capacity <= LONG_CACHE else LONG_PREFILL_CHUNK

    def _bind_adapter(self, adapter: Adapter | None) -> None:
        self._lora = {} if adapter is None else self._model.adapters.get(adapter)
        self._bind_buffers()

    def _release_buffers(self) -> None:
        self._io = None

    def _bind_buffers(self) -> None:
        io = self._model.session.io_binding()
        _bind_input(io, "seqlens_k", self._last)
        _bind_input(io, "total_sequence_length", self._total)
        for (past, present), array in zip(self._model.cache_names, self._cache.arrays, strict=True):
            value = ort_value(array)
            io.bind_ortvalue_input(past, value)
            io.bind_ortvalue_output(present, value)
        for name, value in self._lora.items():
            io.bind_ortvalue_input(name, value)
        self._io, self._bound_shape = io, (0, 0)


def _cache_names(layers: int) -> list[tuple[str, str]]:
    """Return the names of the graph's cache inputs and outputs, in the order of `KeyValueCache.arrays`."""
    kinds = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    return [(f"past_key_values.{kind}", f"present.{kind}") for kind in kinds]


def _matches(values: Mapping[str, Any], wanted: Mapping[str, tuple[str, tuple[int | None, ...]]]) -> bool:
    """Return whether the graph's values are exactly those wanted; None stands for any size."""
    return values.keys() == wanted.keys() and all(
        values[name].type == kind
        and len(values[name].shape) == len(shape)
        and all(size is None or size == found for size, found in zip(shape, values[name].shape, strict=True))
        for name, (kind, shape) in wanted.items()
    )


def _bind_input(io: Any, name: str, array: NDArray[Any]) -> None:
    io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(io: Any, name: str, array: NDArray[Any]) -> None:
    io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
