"""Caches the most recent users' adapters as inputs for a decoder's graph, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.lru_cache import LruCache
from edge_runtime.adapters.pack import pack_adapter
from edge_runtime.bundle.manifest import DecoderSpec

PACKED_BYTES = 64 << 20
"""Room for 20 users with rank 8 on q and v, or 2 with rank 16 on everything, of a 135M model."""


def adapter_identity(adapter: Adapter | None) -> str:
    """Return the adapter's fingerprint, "" for none; prompt caches are bound to it."""
    return "" if adapter is None else adapter.fingerprint


class PackedAdapters:
    """Packed matrices by adapter; the least recently used are evicted when the total exceeds `limit` bytes.

    All sequences of a model share them; the cache is thread-safe.
    """

    def __init__(
        self, base: str, spec: DecoderSpec, convert: Callable[[NDArray[np.float32]], Any], limit: int = PACKED_BYTES
    ) -> None:
        """Pack for a decoder.

        Args:
            base: identity of the model, `Bundle.base`.
            spec: the decoder.
            convert: turns a packed matrix into the runtime's input type; it must not copy.
            limit: maximum bytes; the latest adapter is kept whatever its size.
        """
        self._base, self._spec, self._convert = base, spec, convert
        self._kept = LruCache[Mapping[str, Any]](limit)

    @property
    def nbytes(self) -> int:
        """Total bytes of the cached matrices."""
        return self._kept.nbytes

    def get(self, adapter: Adapter) -> Mapping[str, Any]:
        """Return the adapter's matrices by input name of the graph; see `edge_runtime.adapters.pack.pack_adapter`.

        Raises:
            AdapterError: the adapter has another base, a projection that the base lacks, or a shape that does not fit.
        """
        packed = self._kept.get(adapter.fingerprint)
        if packed is None:
            matrices = pack_adapter(adapter, base=self._base, layers=self._spec.layers, sites=self._spec.lora)
            packed = {name: self._convert(matrix) for name, matrix in matrices.items()}
            self._kept.put(adapter.fingerprint, packed, sum(matrix.nbytes for matrix in matrices.values()))
        return packed
