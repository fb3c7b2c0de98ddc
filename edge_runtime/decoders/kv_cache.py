"""Holds the key and value buffers of one sequence; memory is committed only where tokens have been written."""

from __future__ import annotations

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

FIRST_CAPACITY = 512
_STEP = 256


class KeyValueCache:
    """Keys and values of every layer, float32, in the layout of the attention kernel.

    (1, kv_heads, capacity, head_dim) for onnxruntime, (1, capacity, kv_heads, head_dim) for ExecuTorch.

    The kernel writes new tokens in place, so past and present share one buffer. Capacity grows on demand, up to
    `limit`; pages without tokens take no memory.

    Attributes:
        arrays: one array per layer and kind: key of layer 0, value of layer 0, key of layer 1, ...
        capacity: number of tokens that fit before the next growth.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, limit: int, *, tokens_before_heads: bool = False
    ) -> None:
        self.layers, self.kv_heads, self.head_dim, self.limit = layers, kv_heads, head_dim, limit
        self.tokens_before_heads = tokens_before_heads
        self.capacity = min(FIRST_CAPACITY, limit)
        self.arrays = [self._zeros(self.capacity) for _ in range(2 * layers)]

    def reserve(self, tokens: int, used: int) -> None:
        """Make room for `tokens` in total and keep the first `used`; buffers move if `tokens` exceeds `capacity`."""
        if tokens <= self.capacity:
            return
        # Grow by a quarter instead of doubling, because attention scores are as wide as the buffer.
        capacity = max(tokens, self.capacity + self.capacity // 4)
        capacity = min(-(-capacity // _STEP) * _STEP, self.limit)
        for index, old in enumerate(self.arrays):
            new = self._zeros(capacity)
            self._heads_first(new)[:, :used] = self._heads_first(old)[:, :used]
            self.arrays[index] = new
        self.capacity = capacity

    def copy_out(self, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy the keys and values of the first `length` tokens, each (layers, kv_heads, length, head_dim) float32."""
        shape = (self.layers, self.kv_heads, length, self.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for layer in range(self.layers):
            keys[layer] = self._heads_first(self.arrays[2 * layer])[:, :length]
            values[layer] = self._heads_first(self.arrays[2 * layer + 1])[:, :length]
        return keys, values

    def copy_in(self, keys: NDArray[np.generic], values: NDArray[np.generic]) -> None:
        """Write back the result of `copy_out`; call `reserve` first."""
        length = keys.shape[2]
        for layer in range(self.layers):
            self._heads_first(self.arrays[2 * layer])[:, :length] = keys[layer]
            self._heads_first(self.arrays[2 * layer + 1])[:, :length] = values[layer]

    def _heads_first(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a view of one buffer as (kv_heads, capacity, head_dim)."""
        heads: NDArray[np.float32] = array[0].swapaxes(0, 1) if self.tokens_before_heads else array[0]
        return heads

    def _zeros(self, capacity: int) -> NDArray[np.float32]:
        heads, tokens = self.kv_heads, capacity
        shape = (1, tokens, heads, self.head_dim) if self.tokens_before_heads else (1, heads, tokens, self.head_dim)
        return _lazy_zeros(4 * self.kv_heads * capacity * self.head_dim).view(np.float32).reshape(shape)


def _lazy_zeros(size: int) -> NDArray[np.uint8]:
    """Allocate zeroed bytes in separate pages.

    `np.zeros` requests huge pages, which commits megabytes at the first token of every head. It also keeps freed
    buffers in the heap after the cache has grown.
    """
    if sys.platform == "win32":
        return np.zeros(size, np.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8)
