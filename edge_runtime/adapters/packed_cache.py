"""The last users' adapters, laid out as a decoder's graph takes them, in bounded memory."""

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
    """What prompt caches are bound to: the adapter's fingerprint, "" for none."""
    return "" if adapter is None else adapter.fingerprint


class PackedAdapters:
    """Packed matrices by adapter; the least recently used go when they take more than `limit` bytes.

    All sequences over a model share them; threads may.
    """

    def __init__(
        self, base: str, spec: DecoderSpec, convert: Callable[[NDArray[np.float32]], Any], limit: int = PACKED_BYTES
    ) -> None:
        """Pack for a decoder.

        Args:
            base: identity of the model, `Bundle.base`.
            spec: the decoder.
            convert: makes of a packed matrix what the runtime binds; it must not copy.
            limit: bytes to keep; the adapter asked for last is kept whatever it takes.
        """
        self._base, self._spec, self._convert = base, spec, convert
        self._kept = LruCache[Mapping[str, Any]](limit)

    @property
    def nbytes(self) -> int:
        """Bytes that the kept matrices take."""
        return self._kept.nbytes

    def get(self, adapter: Adapter) -> Mapping[str, Any]:
        """The adapter's matrices by the names of the graph's inputs; see `edge_runtime.adapters.pack.pack_adapter`.

        Raises:
            AdapterError: another base, a projection that the base does not have, or a shape that does not fit.
        """
        packed = self._kept.get(adapter.fingerprint)
        if packed is None:
            matrices = pack_adapter(adapter, base=self._base, layers=self._spec.layers, sites=self._spec.lora)
            packed = {name: self._convert(matrix) for name, matrix in matrices.items()}
            self._kept.put(adapter.fingerprint, packed, sum(matrix.nbytes for matrix in matrices.values()))
        return packed
