"""One direction of a link: when what is sent now arrives. Pure arithmetic, shared by the proxy and the namespaces."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks.links.presets import Link, Outages

Direction = Literal["up", "down"]

SEGMENT = 1448
"""Bytes of a stream that one Ethernet-sized packet carries beside 52 bytes of IP and TCP headers with a time stamp."""

HEADERS = 52

SMALLEST_TIMEOUT = 0.2
"""Seconds that Linux' TCP waits at the least, beyond a round trip, for a lone packet's acknowledgement."""

QUEUE_SECONDS = 0.3
"""How much may wait at the slow end of a link before the sender is held up, in seconds of its rate: a phone network's
buffers hold tenths of a second. Packets beyond it are lost."""

SMALLEST_QUEUE = 16 * SEGMENT


@dataclass(slots=True)
class Lane:
    """A queue in front of a slow wire of some length.

    Times are seconds of any clock that doesn't run backwards.

    Attributes:
        delay: of the wire.
        rate: bit/s at its entrance.
        jitter, loss, outages: as in `Link`.
        started: when the link came into being, from where outages are counted.
        random: where chance comes from.
    """

    delay: float
    rate: float
    jitter: float
    loss: float
    outages: Outages | None
    started: float
    random: random.Random
    _free: float = 0.0
    _latest: float = 0.0

    @classmethod
    def of(cls, link: Link, direction: Direction, seed: int, started: float = 0.0) -> Lane:
        """The lane of a link in one direction; the same seed gives the same chances."""
        rate = link.rate_up if direction == "up" else link.rate_down
        chance = random.Random(f"{direction} {seed}")
        return cls(link.rtt / 2, rate, link.jitter, link.loss, link.outages, started, chance)

    def is_full(self, now: float, size: int = 0) -> bool:
        """Whether `size` more bytes are too many for the queue."""
        if self.rate == inf:
            return False
        waiting = max(self._free - now, 0.0) * self.rate / 8
        return waiting + size > max(self.rate / 8 * QUEUE_SECONDS, SMALLEST_QUEUE)

    def packet(self, now: float, size: int) -> float | None:
        """When a packet of `size` bytes, headers included, arrives; None where it is lost."""
        if self.is_full(now, size) or self._out(now) or self._unlucky():
            return None
        return self._pass(now, size)

    def stream(self, now: float, size: int) -> float:
        """When the next `size` bytes (at most `SEGMENT`) of a TCP stream arrive.

        TCP repeats what was lost: after a round trip and `SMALLEST_TIMEOUT`, then after twice as long, and so on. So an
        outage ends for a stream with the first repetition that comes through, later than it ends for the link.
        """
        sent = now
        patience = 2 * self.delay + SMALLEST_TIMEOUT
        while self._out(sent) or self._unlucky():
            sent += patience
            patience *= 2
        return self._pass(sent, size + HEADERS)

    def _pass(self, now: float, size: int) -> float:
        self._free = max(self._free, now) + size * 8 / self.rate
        self._latest = max(self._latest, self._free + self.delay + self.jitter * self.random.random())
        return self._latest

    def _out(self, time: float) -> bool:
        return self.outages is not None and self.outages.at(time - self.started)

    def _unlucky(self) -> bool:
        return self.loss > 0 and self.random.random() < self.loss
