"""Decides how far to draft ahead and when to send, from measured round trips, decoding steps and accepted drafts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

# Drafting a token with a smaller chance of being reached wastes battery.
_HOPELESS = 0.03
_DEEPEST = 32
_LARGEST_PART = 8
# The share of the cloud's time that one device may use. Above it, the request after a wrong draft has to queue.
_LOAD = 0.7
# Messages in flight, including those with withdrawn drafts: a cloud reads ahead only this far.
_MOST_FLIGHTS = 16


@dataclass(slots=True)
class Measured:
    """Running means of one answer.

    Attributes:
        step_seconds: time of the edge model for one token.
        server_seconds: time of the cloud's model for one request.
        link_seconds: time of a round trip, without the cloud's part.
        acceptance: share of compared drafts that were the fused choice.
        drafted, compared, accepted: number of drafted tokens, of drafts compared with a cloud row, and of drafts that
            were the fused choice.
    """

    step_seconds: float = 0.015
    server_seconds: float = 0.03
    link_seconds: float = 0.05
    acceptance: float = 0.85
    drafted: int = 0
    compared: int = 0
    accepted: int = 0

    def step(self, seconds: float) -> None:
        """Record that the device computed a token."""
        self.step_seconds += 0.2 * (seconds - self.step_seconds)

    def trip(self, seconds: float, server_seconds: float) -> None:
        """Record a reply after `seconds`, including `server_seconds` in the cloud."""
        self.server_seconds += 0.2 * (server_seconds - self.server_seconds)
        self.link_seconds += 0.2 * (max(seconds - server_seconds, 0.0) - self.link_seconds)

    @property
    def latency_steps(self) -> int:
        """Number of tokens that the device can draft between requesting a row and receiving it."""
        return math.ceil((self.link_seconds + self.server_seconds) / max(self.step_seconds, 1e-4))

    def draft(self, accepted: bool) -> None:
        """Record that a drafted token was compared with the fused choice."""
        self.compared += 1
        self.accepted += accepted
        self.acceptance += 0.05 * (accepted - self.acceptance)


class Pace(Protocol):
    """Decides how drafts are grouped into messages."""

    def drafts(self, drafted: int) -> bool:
        """Whether to draft one more token when `drafted` tokens are still unverified."""
        ...

    def sends(self, unsent: int, flights: int, stale_flights: int, *, drafting: bool = True) -> bool:
        """Whether to send now.

        Args:
            unsent: number of positions whose rows are needed but not requested yet.
            flights: messages in flight whose rows are still needed.
            stale_flights: messages in flight whose drafts were withdrawn.
            drafting: whether more positions will follow before a reply arrives.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """Requests `window` rows per round trip, one message at a time, and drafts the next window meanwhile.

    A window of 1 means one round trip per token, without drafts.
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
    """Sends drafts as a stream of small messages, so a wrong draft is detected one latency after it was made.

    A message holds as many tokens as the device drafts while the cloud processes one message, so the cloud keeps up.
    Drafting stops when the next token is unlikely to be reached (`acceptance ** n` below a few percent). It also stops
    after twice the number of tokens that can be drafted before a reply arrives.
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
        """Number of tokens in one message."""
        keeps_up = math.ceil(self.measured.server_seconds / max(_LOAD * self.measured.step_seconds, 1e-4))
        return min(max(keeps_up, 1), _LARGEST_PART)


def choose_pace(window: int | None, measured: Measured) -> Pace:
    """Return the pace for a window; None means adaptive."""
    return AdaptiveWindow(measured) if window is None else FixedWindow(window)
