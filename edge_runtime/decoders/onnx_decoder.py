"""The decoder on plain onnxruntime: our graph with shared KV buffers, one session for any number of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.packed_cache import PackedAdapters, adapter_identity
from edge_runtime.bundle.manifest import ROLE_WEIGHTS, DecoderSpec
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.kv_cache import KeyValueCache
from edge_runtime.decoders.onnx_session import graph_error, open_session, ort_value
from edge_runtime.decoders.prompt_check import check_prompt_cache, checked_context_length
from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.decoders.sequence import TokenSequence
from edge_runtime.errors import BundleError
from edge_runtime.machine.linux_memory import MappedFile

# Tokens of one call while a prompt is read. Longer chunks are a few percent faster at most, and the activations and
# attention scores (heads x chunk x cache) of a chunk are memory that a phone has to find.
PREFILL_CHUNK, LONG_PREFILL_CHUNK = 256, 128
LONG_CACHE = 1024


class SharedModel:
    """The session and what all sequences over it share: limits, names, packed adapters."""

    def __init__(self, bundle: Bundle, spec: DecoderSpec, threads: int | None, *, spin: bool = True) -> None:
        manifest = bundle.manifest
        self.spec = spec
        self.path = bundle.path(self.spec.graph)
        self.vocab_size = manifest.vocab_size
        self.context_length = manifest.context_length
        self.fingerprint = bundle.fingerprint(spec)
        self.cache_names = _cache_names(self.spec.layers)
        weights = next((entry for entry in bundle.decoder_files(spec) if entry.role == ROLE_WEIGHTS), None)
        self.mapped = MappedFile(self.path if weights is None else bundle.path(weights.path))
        with self.mapped.opening():
            self.session = open_session(bundle, spec, threads, spin=spin)
        self._check_graph()
        self.adapters = PackedAdapters(bundle.base, spec, ort_value)

    def _check_graph(self) -> None:
        """Refuse a graph that the manifest does not describe: its kernels would read memory that isn't theirs."""
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
            raise BundleError(
                f"The bundle's graph is not the one its manifest describes: {self.path}. Export the bundle again."
            )


class OnnxDecoder(TokenSequence):
    """A sequence over a graph of kind "shared_kv"; see `edge_runtime.decoders.protocol.Decoder`.

    Not for use from two threads at once; forks may run in different threads.
    """

    def __init__(self, model: SharedModel, context_length: int) -> None:
        super().__init__(model.vocab_size, context_length, model.fingerprint)
        self._model = model
        self._adapter: Adapter | None = None
        self._lora: Mapping[str, Any] = {}
        spec = model.spec
        self._cache = KeyValueCache(spec.layers, spec.kv_heads, spec.head_dim, context_length)
        # Inputs of a step lie at fixed addresses, so that a step of one token binds nothing but its logits.
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros(1, np.int32)
        self._one_id = np.zeros((1, 1), np.int64)
        self._one_row = np.zeros(1, np.int64)
        self._bound_shape = (0, 0)
        self._io: Any = None
        self._bind_all()

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        spec: DecoderSpec,
        *,
        threads: int | None = None,
        context_length: int | None = None,
        spin: bool = True,
    ) -> OnnxDecoder:
        """Load the decoder's graph; see `edge_runtime.decoders.open.open_decoder`."""
        model = SharedModel(bundle, spec, threads, spin=spin)
        return cls(model, checked_context_length(context_length, model.context_length))

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Use this adapter from the next `extend` on; where it differs from the one in use, the cache is emptied.

        Raises:
            AdapterError: it was trained on another base, or its shapes don't fit.
        """
        if adapter_identity(adapter) == adapter_identity(self._adapter):
            return
        lora = {} if adapter is None else self._model.adapters.get(adapter)
        self._adapter, self._lora = adapter, lora
        self._forget()
        self._bind_all()

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
        spec = self._model.spec
        shape = (spec.layers, spec.kv_heads, len(cache.token_ids), spec.head_dim)
        check_prompt_cache(cache, self, adapter_identity(self._adapter), shape)
        self._make_room(len(cache.token_ids), 0)
        self._cache.copy_in(cache.keys, cache.values)
        self._forget(cache.token_ids)

    def fork(self) -> OnnxDecoder:
        """Another, empty sequence over the same weights and with the same adapter."""
        other = OnnxDecoder(self._model, self.context_length)
        other.use_adapter(self._adapter)
        return other

    def _feed(self, token_ids: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        self._make_room(self.length + len(token_ids), self.length)
        logits = np.empty((rows, self.vocab_size), np.float32)
        done, before_rows = 0, len(token_ids) - rows
        # Parts of equal length: a last one of a single row would cost as much as one of eight.
        longest = PREFILL_CHUNK if self._cache.capacity <= LONG_CACHE else LONG_PREFILL_CHUNK
        for chunk in np.array_split(token_ids, -(-len(token_ids) // longest)):
            end = done + len(chunk)
            self._run(self.length + done, chunk, logits[max(done - before_rows, 0) : max(end - before_rows, 0)])
            done = end
            if len(chunk) >= LONG_PREFILL_CHUNK // 2:
                self._model.mapped.release()
        return logits

    def _run(self, past: int, chunk: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """One call: `chunk` goes into the cache behind `past` tokens, its last rows' logits into `logits`."""
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

    def _make_room(self, tokens: int, used: int) -> None:
        if tokens > self._cache.capacity:
            self._io = None  # it holds the old buffers, which are to go one by one as the new ones fill
            self._cache.reserve(tokens, used)
            self._bind_all()

    def _bind_all(self) -> None:
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
    """Names of the graph's cache inputs and outputs, in the order of `KeyValueCache.arrays`."""
    kinds = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    return [(f"past_key_values.{kind}", f"present.{kind}") for kind in kinds]


def _matches(values: Mapping[str, Any], wanted: Mapping[str, tuple[str, tuple[int | None, ...]]]) -> bool:
    """Whether the graph's values are exactly those wanted; None stands for any size."""
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
