"""Measures the memory read bandwidth, which limits decoding, because every token reads all weights."""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

_BYTES = 256 << 20  # beyond any cache
_PASSES = 3


class ReadBandwidth:
    """Reads one large array with all threads at once.

    Args:
        threads: number of threads; each reads its own part.
    """

    def __init__(self, threads: int) -> None:
        # Ones, not zeros: untouched zero pages share one physical page, which stays in the cache.
        self._parts = np.array_split(np.ones(_BYTES // 8, np.uint64), threads)

    def measure(self) -> float:
        """Return the bytes per second of the best of a few passes."""
        return max(self._once() for _ in range(_PASSES))

    def _once(self) -> float:
        ready = threading.Barrier(len(self._parts) + 1)
        workers = [threading.Thread(target=_read, args=(part, ready)) for part in self._parts]
        for worker in workers:
            worker.start()
        ready.wait()
        started = time.perf_counter()
        for worker in workers:
            worker.join()
        return _BYTES / (time.perf_counter() - started)


def _read(part: NDArray[np.uint64], ready: threading.Barrier) -> None:
    ready.wait()
    np.bitwise_or.reduce(part)  # numpy's cheapest vectorized pass; it releases the GIL
