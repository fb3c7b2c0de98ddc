"""A token sequence with a KV cache: the model computes only tokens after the common prefix with the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray


class CachedSequence(ABC):
    """The part that is the same for every model; a backend adds `_feed`, `_crop` and `cache_bytes`.

    Attributes:
        token_ids: the cached tokens.
        part: maximum number of tokens per step of `read`.
    """

    def __init__(self, part: int) -> None:
        self.token_ids: list[int] = []
        self.part = part

    def read(self, token_ids: Sequence[int]) -> Generator[None, None, None]:
        """Fill the cache with `token_ids`, except for the last `part` of them or fewer.

        Yields after each part. If no token was missing, cached tokens after `token_ids` stay.
        """
        token_ids = list(token_ids)
        while len(token_ids) - (kept := common_prefix(self.token_ids, token_ids)) > self.part:
            self._append(kept, token_ids[kept : kept + self.part], ())
            yield

    def log_probs(self, token_ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Compute the next-token distributions after some of the tokens, and cache all tokens up to the last of these.

        Args:
            token_ids: the sequence.
            positions: positions in the sequence, ascending; at least one. A position is computed again even if cached.

        Returns:
            (len(positions), V) float32 log-probabilities; row i is for the token after `positions[i]`. The
            probabilities sum to 1 over the V ids of model and tokenizer, without the embedding's padding.
        """
        token_ids = list(token_ids[: positions[-1] + 1])
        for _ in self.read(token_ids[: positions[0]]):
            pass
        start = min(common_prefix(self.token_ids, token_ids), positions[0])
        return self._append(start, token_ids[start:], [position - start for position in positions])

    def feed(self, start: int, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Discard all tokens from position `start` on, append `token_ids`, and return the (V,) row after the last."""
        whole = [*self.token_ids[:start], *token_ids]
        row: NDArray[np.float32] = self.log_probs(whole, [len(whole) - 1])[0]
        return row

    def feed_in_turns(self, start: int, token_ids: Sequence[int]) -> Generator[None, None, NDArray[np.float32]]:
        """Do the same as `feed`, but yield after each part of the work."""
        yield from self.read([*self.token_ids[:start], *token_ids])
        row = self.feed(start, token_ids)
        yield
        return row

    def clear(self) -> None:
        """Discard all tokens and free the memory."""
        self.token_ids = []
        self._crop(0)

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Size of the KV cache."""

    @abstractmethod
    def _feed(self, token_ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the log-probabilities after those at the indices `rows` (ascending)."""

    @abstractmethod
    def _crop(self, length: int) -> None:
        """Discard all but the first `length` tokens; 0 frees the memory."""

    def _append(self, start: int, token_ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        del self.token_ids[start:]
        try:
            self._crop(start)
            found = self._feed(token_ids, rows)
        except BaseException:
            self.clear()  # layers may now differ in length
            raise
        self.token_ids.extend(token_ids)
        return found


def common_prefix(left: list[int], right: list[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(index for index in range(shorter) if left[index] != right[index])
