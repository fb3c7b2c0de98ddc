"""Decides at which steps of an answer the cloud is asked: by CoGenesis' P/K/T schedule, or by a learned combiner."""

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

    That is: P steps with the cloud, then turns of T steps with it and K without. The default always asks.
    """

    first: int = 0
    without: int = 0
    turn: int = 1

    def __post_init__(self) -> None:
        if min(self.first, self.without, self.turn) < 0 or self.without + self.turn == 0:
            raise RequestError("`schedule` P,K,T must have whole numbers of at least 0, with K + T above 0.")

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
                f"`schedule` must be three whole numbers P,K,T, or learned, or learned:SHARE, not '{text}'. "
                "Examples: 8,4,2 and learned:0.5."
            )
        return cls(*(int(part) for part in parts))


COMPARED = 64
"""How many of the latest steps a step's worth is compared with, if the schedule has a share."""
AHEAD = 4
"""Steps by which the schedule may exceed its share."""


class Decision(NamedTuple):
    """A learned schedule's decision for one step: the expected gain from the cloud in nats, and whether it asks."""

    worth: float
    asks: bool


@dataclass(frozen=True, slots=True)
class LearnedSchedule:
    """Asks the cloud at the first step, and wherever the edge's own rows predict that its row is worth the request.

    Without a share, the cloud is asked wherever its expected worth reaches the combiner's threshold: rarely in easy
    texts, often in hard ones. With a share, it is asked at those of the answer's latest steps where it is worth most.
    A model's own words surprise it less than people's do, so the expected worth is too low; a share is unaffected.

    Attributes:
        combiner: predicts the worth of asking; None uses the bundle's combiner, which the assistant fills in.
        share: fraction of an answer's steps at which the cloud may be asked, above 0 and at most 1, plus `AHEAD` steps;
            None asks by the threshold.
    """

    combiner: Combiner | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise RequestError(f"The share of a learned `schedule` must be above 0 and at most 1, not {self.share:g}.")

    def asks(self, step: int) -> bool | None:
        """Whether the cloud is asked at this step; None if the edge's row decides, see `decide`.

        The first row is requested while the edge still prefills its prompt; its reply shows whether the cloud is there.
        """
        return True if step == 0 else None

    def decide(
        self, step: int, edge: NDArray[np.float32], recent: Sequence[float], earlier: Sequence[Decision]
    ) -> Decision:
        """Decide whether the cloud is asked at this step.

        Args:
            step: index of the step, from 1.
            edge: (V,) float32, the edge's log-probs there.
            recent: log-probs that the edge's rows gave the tokens before, oldest first.
            earlier: the decisions for the steps from 1 to the previous one, whether or not the cloud then replied.

        Raises:
            ValueError: there is no combiner.
        """
        if self.combiner is None:
            raise ValueError("a learned schedule needs a combiner")
        return self.decide_by(self.combiner.expects(edge, recent, step), self.combiner.threshold, earlier)

    def decide_by(self, worth: float, threshold: float, earlier: Sequence[Decision]) -> Decision:
        """Decide from a known worth; see `decide`."""
        if self.share is None:
            return Decision(worth, worth >= threshold)
        latest = earlier[-COMPARED:]
        among_best = sum(one.worth > worth for one in latest) < self.share * (len(latest) + 1)
        spent = sum(one.asks for one in earlier)
        return Decision(worth, among_best and spent < self.share * (len(earlier) + 1) + AHEAD)


def parse_schedule(text: str) -> Schedule | LearnedSchedule:
    """Read "P,K,T", "learned" or "learned:SHARE".

    Raises:
        RequestError: the text is none of them.
    """
    kind, colon, share = text.strip().partition(":")
    if kind != "learned":
        return Schedule.parse(text)
    if not colon:
        return LearnedSchedule()
    try:
        return LearnedSchedule(share=float(share))
    except ValueError:
        raise RequestError(
            f"The share of a learned `schedule` must be a number, such as learned:0.5, not '{text}'."
        ) from None
