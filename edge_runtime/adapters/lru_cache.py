"""Keeps what was used last, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LruCache(Generic[T]):
    """Values by key, the least recently used of which go when all together pass `capacity` bytes.

    The newest stays even if it alone is larger: it is in use anyway. Safe to share between threads.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        """The value, which is then the most recently used; None where it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: T, nbytes: int) -> None:
        """Keep a value of this many bytes."""
        with self._lock:
            self._drop(key)
            self._values[key] = value, nbytes
            self._nbytes += nbytes
            while self._nbytes > self._capacity and len(self._values) > 1:
                self._drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        """Keep this no longer, if it is kept."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        if key in self._values:
            self._nbytes -= self._values.pop(key)[1]
