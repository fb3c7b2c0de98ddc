"""CoGenesis' P/K/T schedule: at which steps of an answer the cloud is asked."""

from __future__ import annotations

from dataclasses import dataclass

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
            raise RequestError(f"A schedule is three whole numbers P,K,T, not '{text}'. Example: --schedule 8,4,2")
        return cls(*(int(part) for part in parts))
