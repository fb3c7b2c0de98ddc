"""How far to draft ahead and when to send: from what round trips, steps and drafts have turned out to be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

# A token that is this unlikely to be reached is not worth the battery.
_HOPELESS = 0.03
_DEEPEST = 32
_LARGEST_PART = 8
# The share of its time that the cloud may spend on us; above it, a request after a wrong draft finds a queue.
_LOAD = 0.7
# Messages under way, those whose drafts were taken back included: a cloud reads only so far ahead.
_MOST_FLIGHTS = 16


@dataclass(slots=True)
class Measured:
    """Running means of one answer.

    Attributes:
        step_seconds: of the edge model for one token.
        server_seconds: of the cloud's model for one request.
        link_seconds: of a round trip, without the cloud's part.
        acceptance: share of compared drafts that were the fused choice.
        drafted, compared, accepted: tokens drafted, of them those that a cloud's row was there for, and of those the
            ones that were the fused choice.
    """

    step_seconds: float = 0.015
    server_seconds: float = 0.03
    link_seconds: float = 0.05
    acceptance: float = 0.85
    drafted: int = 0
    compared: int = 0
    accepted: int = 0

    def step(self, seconds: float) -> None:
        """A token was computed on the device."""
        self.step_seconds += 0.2 * (seconds - self.step_seconds)

    def trip(self, seconds: float, server_seconds: float) -> None:
        """A reply came after `seconds`, of which the cloud took `server_seconds`."""
        self.server_seconds += 0.2 * (server_seconds - self.server_seconds)
        self.link_seconds += 0.2 * (max(seconds - server_seconds, 0.0) - self.link_seconds)

    @property
    def latency_steps(self) -> int:
        """Tokens that the device can draft between asking for a row and having it."""
        return math.ceil((self.link_seconds + self.server_seconds) / max(self.step_seconds, 1e-4))

    def draft(self, accepted: bool) -> None:
        """A drafted token was compared with the fused choice."""
        self.compared += 1
        self.accepted += accepted
        self.acceptance += 0.05 * (accepted - self.acceptance)


class Pace(Protocol):
    """Decides how drafts are grouped into messages."""

    def drafts(self, drafted: int) -> bool:
        """Whether to draft one more token, with `drafted` unsettled ones there."""
        ...

    def sends(self, unsent: int, flights: int, stale_flights: int, *, drafting: bool = True) -> bool:
        """Whether to send now.

        Args:
            unsent: positions whose rows are wanted and were not asked for.
            flights: messages under way whose rows are still wanted.
            stale_flights: messages under way whose drafts were taken back.
            drafting: whether more positions will follow before a reply comes.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """`window` rows a round trip, one message under way; while it is, the next window is drafted.

    A window of 1 is one round trip a token, without drafts.
    """

    window: int

    def drafts(self, drafted: int) -> bool:
        """See `Pace.drafts`."""
        return drafted < 2 * (self.window - 1)

    def sends(self, unsent: int, flights: int, stale_flights: int, *, drafting: bool = True) -> bool:  # noqa: ARG002
        """See `Pace.sends`."""
        return flights == 0 and unsent >= (self.window if drafting else 1)


@dataclass(frozen=True, slots=True)
class AdaptiveWindow:
    """Drafts go out in a stream of small messages, so that a wrong draft is known one latency after it was made.

    A message holds as many tokens as the device drafts while the cloud works on one, so the cloud keeps up. Drafting
    ends where a token would hardly be reached any more (`acceptance ** n` below a few percent), and after twice what
    can be drafted until a reply comes.
    """

    measured: Measured

    def drafts(self, drafted: int) -> bool:
        """See `Pace.drafts`."""
        acceptance = min(max(self.measured.acceptance, 0.05), 0.99)
        reachable = math.ceil(math.log(_HOPELESS) / math.log(acceptance))
        return drafted < min(reachable, 2 * self.measured.latency_steps + self.part, _DEEPEST)

    def sends(self, unsent: int, flights: int, stale_flights: int, *, drafting: bool = True) -> bool:
        """See `Pace.sends`."""
        if flights == 0:
            return unsent > 0
        return unsent >= (self.part if drafting else 1) and flights + stale_flights < _MOST_FLIGHTS

    @property
    def part(self) -> int:
        """Tokens of one message."""
        keeps_up = math.ceil(self.measured.server_seconds / max(_LOAD * self.measured.step_seconds, 1e-4))
        return min(max(keeps_up, 1), _LARGEST_PART)


def choose_pace(window: int | None, measured: Measured) -> Pace:
    """The pace for a window; None adapts it."""
    return AdaptiveWindow(measured) if window is None else FixedWindow(window)
