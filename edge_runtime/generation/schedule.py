"""At which steps of an answer the cloud is asked: by CoGenesis' P/K/T schedule, or as a combiner has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RequestError
from edge_runtime.fusion.combiner import Combiner


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
                f"A schedule is three whole numbers P,K,T, or learned, or learned:SHARE, not '{text}'. "
                "Examples: --schedule 8,4,2, --schedule learned:0.5"
            )
        return cls(*(int(part) for part in parts))


COMPARED = 64
"""Latest steps among which a step must be worth asking at, where a schedule keeps to a share of an answer's steps."""
AHEAD = 4
"""Steps by which it may run ahead of that share."""


class Decision(NamedTuple):
    """What a learned schedule made of a step: the nats that it expected of the cloud, and whether it asked."""

    worth: float
    asks: bool


@dataclass(frozen=True, slots=True)
class LearnedSchedule:
    """The cloud is asked where the edge's own rows tell that it will be worth it, and at the first step.

    Without a share it is asked wherever its worth is expected to reach the combiner's threshold: seldom in easy texts,
    often in hard ones. With a share it is asked where that is expected to be worth most of the answer's latest steps.
    A model's own words surprise it less than people's do, so that worth is expected to be less than it is; a share
    is kept to all the same.

    Attributes:
        combiner: what knows its worth; None takes the bundle's, which the assistant puts here.
        share: of an answer's steps at which the cloud may be asked, above 0 and at most 1, and `AHEAD` more; None asks
            by the threshold.
    """

    combiner: Combiner | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise RequestError(f"A learned schedule's share lies above 0 and at most 1, not {self.share:g}.")

    def asks(self, step: int) -> bool | None:
        """Whether the cloud is asked at this step; None where the edge's row decides, see `decide`.

        The first row's request travels while the edge still reads its prompt, and tells whether the cloud is there.
        """
        return True if step == 0 else None

    def decide(
        self, step: int, edge: NDArray[np.float32], recent: Sequence[float], earlier: Sequence[Decision]
    ) -> Decision:
        """Whether the cloud is asked at this step.

        Args:
            step: from 1.
            edge: (V,) float32, the edge's log-probs there.
            recent: what its rows gave the tokens before, the latest last.
            earlier: what was decided at the steps from 1 to the one before, with whatever became of it.

        Raises:
            ValueError: there is no combiner.
        """
        if self.combiner is None:
            raise ValueError("a learned schedule needs a combiner")
        return self.decide_by(self.combiner.expects(edge, recent, step), self.combiner.threshold, earlier)

    def decide_by(self, worth: float, threshold: float, earlier: Sequence[Decision]) -> Decision:
        """The same where the worth is known already."""
        if self.share is None:
            return Decision(worth, worth >= threshold)
        latest = earlier[-COMPARED:]
        among_best = sum(one.worth > worth for one in latest) < self.share * (len(latest) + 1)
        spent = sum(one.asks for one in earlier)
        return Decision(worth, among_best and spent < self.share * (len(earlier) + 1) + AHEAD)


def parse_schedule(text: str) -> Schedule | LearnedSchedule:
    """Read "P,K,T", "learned" or "learned:SHARE".

    Raises:
        RequestError: it is none of them.
    """
    kind, colon, share = text.strip().partition(":")
    if kind != "learned":
        return Schedule.parse(text)
    if not colon:
        return LearnedSchedule()
    try:
        return LearnedSchedule(share=float(share))
    except ValueError:
        raise RequestError(f"A learned schedule's share is a number, such as learned:0.5, not '{text}'.") from None
