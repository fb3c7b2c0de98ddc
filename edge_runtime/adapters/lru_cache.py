"""A cache of limited size that keeps the most recently used values."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class LruCache(Generic[T]):
    """Values by key; the least recently used are evicted when the total exceeds `capacity` bytes.

    The newest value is kept even if it alone exceeds `capacity`, because it is in use anyway. The cache is thread-safe.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Total bytes of the cached values."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        """Return the value and mark it as the most recently used; None if it is not cached."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: T, nbytes: int) -> None:
        """Cache a value of this many bytes."""
        with self._lock:
            self._drop(key)
            self._values[key] = value, nbytes
            self._nbytes += nbytes
            while self._nbytes > self._capacity and len(self._values) > 1:
                self._drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        """Remove the value if it is cached."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        if key in self._values:
            self._nbytes -= self._values.pop(key)[1]
