"""Runs a graph of kind "portable" (by torch's exporter), for architectures that our own graph does not support."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.bundle.manifest import DecoderSpec
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.model import DecoderModel
from edge_runtime.decoders.onnx_session import graph_error, not_the_described_graph, open_session
from edge_runtime.decoders.prompt_check import check_prompt_cache
from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.decoders.sequence import TokenSequence
from edge_runtime.errors import AdapterError, BundleError

# The graph computes logits for every row, so a longer chunk costs (chunk, vocabulary) float32 of memory.
PREFILL_CHUNK = 64


class PortableModel(DecoderModel):
    """The session and the names of its inputs and outputs."""

    def __init__(self, bundle: Bundle, spec: DecoderSpec, threads: int | None, *, spin: bool = True) -> None:
        super().__init__(bundle, spec)
        self.session = open_session(bundle, spec, threads, spin=spin)
        inputs = {value.name: value for value in self.session.get_inputs()}
        self.has_positions = "position_ids" in inputs
        self.past = [f"past_key_values.{i}.{kind}" for i in range(self.spec.layers) for kind in ("key", "value")]
        self.outputs = ["logits", *(name.replace("past_key_values", "present") for name in self.past)]
        needed = {"input_ids", "attention_mask", *self.past} | ({"position_ids"} if self.has_positions else set())
        given = {value.name for value in self.session.get_outputs()}
        wanted = [self.spec.kv_heads, self.spec.head_dim]
        cache = [inputs[name] for name in self.past if name in inputs]
        if (
            inputs.keys() != needed
            or not given.issuperset(self.outputs)
            or any(
                value.type != "tensor(float)" or len(value.shape) != 4 or value.shape[1::2] != wanted for value in cache
            )
        ):
            raise not_the_described_graph(self.path)


class PortableDecoder(TokenSequence):
    """A sequence over a graph of kind "portable"; see `edge_runtime.decoders.protocol.Decoder`. No adapters."""

    def __init__(self, model: PortableModel, context_length: int) -> None:
        super().__init__(model, context_length)
        self._model = model
        self._cache = self._empty()

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens.

        Raises:
            ValueError: `length` is negative or above the current length.
        """
        super().rewind(length)
        # Views cost no copy; the graph accepts caches of any length.
        self._cache = [array[:, :, :length] for array in self._cache]

    def use_adapter(self, adapter: Adapter | None) -> None:
        """Reject any adapter, because the portable graph has no inputs for one.

        Raises:
            AdapterError: `adapter` is not None.
        """
        if adapter is not None:
            raise AdapterError(
                "This bundle takes no adapters: its graph is the portable one. Use a model of the Llama family."
            )

    def save(self, length: int | None = None) -> PromptCache:
        """Copy the KV state of the first `length` tokens (None: all)."""
        length = self._checked_length(self.length if length is None else length)
        keys, values = (np.stack([array[0, :, :length] for array in self._cache[kind::2]]) for kind in (0, 1))
        return PromptCache(self.fingerprint, "", self.token_ids[:length], keys, values)

    def restore(self, cache: PromptCache) -> None:
        """Continue from a saved state.

        Raises:
            PromptCacheError: the state was made by another model or with another adapter, or does not fit.
        """
        check_prompt_cache(cache, self, "", self._model.spec)
        pairs = zip(cache.keys, cache.values, strict=True)
        self._cache = [array[None].copy() for pair in pairs for array in pair]
        self._forget(cache.token_ids)

    def fork(self) -> PortableDecoder:
        """Return a new, empty sequence over the same weights."""
        return PortableDecoder(self._model, self.context_length)

    def _feed(self, token_ids: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        logits = np.empty((rows, self.vocab_size), np.float32)
        before, done, count = self._cache, 0, len(token_ids)
        try:
            while done < count:
                chunk = token_ids[done : done + PREFILL_CHUNK]
                found = self._run(self.length + done, chunk)
                done += len(chunk)
                wanted = max(0, done - max(count - rows, done - len(chunk)))
                if wanted:
                    first = done - wanted - (count - rows)
                    logits[first : first + wanted] = found[len(chunk) - wanted :]
        except BundleError:
            self._cache = before
            raise
        return logits

    def _run(self, past: int, chunk: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the graph once and return the logits of all of `chunk`: (len(chunk), vocab_size)."""
        model, total = self._model, past + len(chunk)
        feeds: dict[str, NDArray[Any]] = dict(zip(model.past, self._cache, strict=True))
        feeds["input_ids"] = chunk[None]
        feeds["attention_mask"] = np.ones((1, total), np.int64)
        if model.has_positions:
            feeds["position_ids"] = np.arange(past, total, dtype=np.int64)[None]
        try:
            logits, *cache = model.session.run(model.outputs, feeds)
        except Exception as error:
            raise graph_error(model.path, "can't be run", error) from None
        if logits.shape != (1, len(chunk), self.vocab_size) or any(array.shape[2] != total for array in cache):
            raise BundleError(f"The bundle's graph gives other shapes than its manifest says: {model.path}.")
        self._cache = cache
        return np.asarray(logits[0], np.float32)

    def _empty(self) -> list[NDArray[np.float32]]:
        spec = self._model.spec
        return [np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32) for _ in self._model.past]
