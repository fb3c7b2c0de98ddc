"""Token ids whose keys and values a model keeps: only what differs from what is kept is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray


class CachedSequence(ABC):
    """What is the same for every model; a backend adds `_feed`, `_crop` and `cache_bytes`.

    Attributes:
        token_ids: those whose keys and values are kept.
        part: the most tokens of one step of `read`.
    """

    def __init__(self, part: int) -> None:
        self.token_ids: list[int] = []
        self.part = part

    def read(self, token_ids: Sequence[int]) -> Generator[None, None, None]:
        """Make sure that what is kept begins with `token_ids`, but for the last `part` of them or fewer.

        Yields after each part. What is kept behind `token_ids` stays where nothing was missing.
        """
        token_ids = list(token_ids)
        while len(token_ids) - (kept := common_prefix(self.token_ids, token_ids)) > self.part:
            self._append(kept, token_ids[kept : kept + self.part], ())
            yield

    def log_probs(self, token_ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Score what may follow some of the tokens, and keep the tokens up to the last of these.

        Args:
            token_ids: the sequence.
            positions: in it, ascending; at least one. A position runs again though its keys and values are kept.

        Returns:
            (len(positions), V) float32 log-probabilities; row i follows token `positions[i]`. They sum to 1 over the V
            ids that both model and tokenizer know: ids that only padding of the embedding has are left out.
        """
        token_ids = list(token_ids[: positions[-1] + 1])
        for _ in self.read(token_ids[: positions[0]]):
            pass
        start = min(common_prefix(self.token_ids, token_ids), positions[0])
        return self._append(start, token_ids[start:], [position - start for position in positions])

    def feed(self, start: int, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Forget all from position `start` on, append `token_ids`, and give the (V,) row behind the last."""
        whole = [*self.token_ids[:start], *token_ids]
        row: NDArray[np.float32] = self.log_probs(whole, [len(whole) - 1])[0]
        return row

    def feed_in_turns(self, start: int, token_ids: Sequence[int]) -> Generator[None, None, NDArray[np.float32]]:
        """As `feed`; yields after each part of the work."""
        yield from self.read([*self.token_ids[:start], *token_ids])
        row = self.feed(start, token_ids)
        yield
        return row

    def clear(self) -> None:
        """Keep nothing; the memory is free."""
        self.token_ids = []
        self._crop(0)

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory of keys and values."""

    @abstractmethod
    def _feed(self, token_ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and give the log-probabilities behind those of them that `rows` names (indices, ascending)."""

    @abstractmethod
    def _crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; 0 frees the memory."""

    def _append(self, start: int, token_ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        del self.token_ids[start:]
        try:
            self._crop(start)
            found = self._feed(token_ids, rows)
        except BaseException:
            self.clear()  # layers may differ in length now
            raise
        self.token_ids.extend(token_ids)
        return found


def common_prefix(left: list[int], right: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(index for index in range(shorter) if left[index] != right[index])
