"""The last users' adapters, laid out as a decoder's graph takes them, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapter import Adapter
from edge_runtime.lora import pack_adapter
from edge_runtime.manifest import DecoderSpec

PACKED_BYTES = 64 << 20
"""Room for 35 users with rank 8 on q and v, or 3 with rank 16 on everything, of a 135M model."""


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
        self._base, self._spec, self._convert, self._limit = base, spec, convert, limit
        self._kept: OrderedDict[str, tuple[Mapping[str, Any], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that the kept matrices take."""
        return self._bytes

    def get(self, adapter: Adapter) -> Mapping[str, Any]:
        """The adapter's matrices by the names of the graph's inputs; see `edge_runtime.lora.pack_adapter`.

        Raises:
            AdapterError: another base, a projection that the base does not have, or a shape that does not fit.
        """
        with self._lock:
            found = self._kept.get(adapter.fingerprint)
            if found is None:
                spec = self._spec
                matrices = pack_adapter(adapter, base=self._base, layers=spec.layers, sites=spec.lora)
                size = sum(matrix.nbytes for matrix in matrices.values())
                found = ({name: self._convert(matrix) for name, matrix in matrices.items()}, size)
                self._kept[adapter.fingerprint] = found
                self._bytes += size
                while self._bytes > self._limit and len(self._kept) > 1:
                    _, (_, freed) = self._kept.popitem(last=False)
                    self._bytes -= freed
            self._kept.move_to_end(adapter.fingerprint)
            return found[0]
