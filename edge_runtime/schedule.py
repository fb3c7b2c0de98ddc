"""At which steps of an answer the cloud is asked: by CoGenesis' P/K/T schedule, or as a combiner has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.combiner import Combiner
from edge_runtime.errors import RequestError


@dataclass(frozen=True, slots=True)
class Schedule:
    """The cloud is asked at step s (from 0) if s < P, or if (s - K - 1) mod (K + T) < T.

    So: the first P steps with the cloud, then turns of T steps with it and K without. The default asks always.
    """

    first: int = 0
    without: int = 0
    turn: int = 1

    def __post_init__(self) -> None:
        if min(self.first, self.without, self.turn) < 0 or self.without + self.turn == 0:
            raise RequestError("A schedule P,K,T needs whole numbers of at least 0, and K + T above 0.")

    def asks(self, step: int) -> bool:
        """Whether the cloud is asked at this step."""
        return step < self.first or (step - self.without - 1) % (self.without + self.turn) < self.turn

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read "P,K,T".

        Raises:
            RequestError: not three whole numbers.
        """
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise RequestError(
                f"A schedule is three whole numbers P,K,T, or the word learned, not '{text}'. Example: --schedule 8,4,2"
            )
        return cls(*(int(part) for part in parts))


@dataclass(frozen=True, slots=True)
class LearnedSchedule:
    """The cloud is asked where the edge's own rows tell that it will be worth it, and at the first step.

    Attributes:
        combiner: what knows its worth; None takes the bundle's, which the assistant puts here.
    """

    combiner: Combiner | None = None

    def asks(self, step: int) -> bool | None:
        """Whether the cloud is asked at this step; None where the edge's row decides, see `asks_at`.

        The first row's request travels while the edge still reads its prompt, and tells whether the cloud is there.
        """
        return True if step == 0 else None

    def asks_at(self, step: int, edge: NDArray[np.float32], recent: Sequence[float]) -> bool:
        """Whether the cloud is asked at this step.

        Args:
            step: from 0.
            edge: (V,) float32, the edge's log-probs there.
            recent: what its rows gave the tokens before, the latest last.

        Raises:
            ValueError: there is no combiner.
        """
        if self.combiner is None:
            raise ValueError("a learned schedule needs a combiner")
        return self.combiner.asks(edge, recent, step)


def parse_schedule(text: str) -> Schedule | LearnedSchedule:
    """Read "P,K,T" or "learned".

    Raises:
        RequestError: it is neither.
    """
    return LearnedSchedule() if text.strip() == "learned" else Schedule.parse(text)
