"""Describes the networks that a phone meets: delay, rate, jitter, loss and outages.

Sources of the numbers:

- `3g` and `edge` are WebPageTest's profiles of these names (its connectivity.ini: 1.6 Mbit/s down, 768 kbit/s up and
  300 ms; 240 and 200 kbit/s and 840 ms), typical of such networks. Jitter is our own choice.
- `4g`: 50 ms, 30 and 10 Mbit/s, jitter and loss are our own choice for a good cell. WebPageTest's "LTE" has 70 ms and
  12 Mbit/s each way. Loadero's "4G" network mode has 45 ms, 100 and 50 Mbit/s, 5 to 15 ms of jitter and 0.2 % of loss.
- `5g`: Rohde & Schwarz measured 7 to 18 ms one way in a public non-standalone network (M. Kottkamp, "5G NR and LTE
  latency analysis in a public network", 2022); we use a round trip of 20 ms. The rates are our own choice.
- `wifi`, `lan` and `tunnel` are our own choice: a home's access point with the server in the house; a cable; a train
  that loses `4g` for 4 s in every 20 s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MBIT = 1e6
KBIT = 1e3


@dataclass(frozen=True, slots=True)
class Outages:
    """No packets pass in the last `length` seconds of every `period` seconds, counted from the link's start."""

    period: float
    length: float

    def __post_init__(self) -> None:
        if not 0 < self.length < self.period:
            raise ValueError(f"An outage of {self.length} s does not fit into a period of {self.period} s.")

    def at(self, time: float) -> bool:
        """Whether there is an outage `time` seconds after the link's start."""
        return time % self.period >= self.period - self.length


@dataclass(frozen=True, slots=True)
class Link:
    """A network between a device and a cloud.

    Attributes:
        name: name on the command line.
        rtt: minimum round-trip time of a small packet in seconds, half of it each way.
        rate_down: bit/s from the cloud to the device.
        rate_up: bit/s from the device to the cloud.
        jitter: maximum additional seconds per packet, each way; uniformly distributed from zero. Order is kept.
        loss: share of lost packets.
        outages: times at which no packets pass.
    """

    name: str
    rtt: float = 0.0
    rate_down: float = inf
    rate_up: float = inf
    jitter: float = 0.0
    loss: float = 0.0
    outages: Outages | None = None

    def __post_init__(self) -> None:
        if self.rtt < 0 or self.jitter < 0 or self.rate_down <= 0 or self.rate_up <= 0 or not 0 <= self.loss < 1:
            raise ValueError(f"Not a network: {self}.")

    def describe(self) -> str:
        """Describe the link in words, as "50 ms, 10/10 Mbit/s"."""
        parts = [f"{self.rtt * 1e3:g} ms"]
        if self.rate_down < inf or self.rate_up < inf:
            parts.append(f"{self.rate_down / MBIT:g}/{self.rate_up / MBIT:g} Mbit/s")
        if self.jitter:
            parts.append(f"jitter {self.jitter * 1e3:g} ms")
        if self.loss:
            parts.append(f"loss {self.loss:.2%}")
        if self.outages:
            parts.append(f"down {self.outages.length:g} s in {self.outages.period:g} s")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Convert to a form for JSON; an infinite rate becomes None."""
        return {name: None if value == inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Link:
        """Make the link that `to_json` wrote."""
        outages = Outages(**values["outages"]) if values["outages"] else None
        rates = {name: inf if values[name] is None else values[name] for name in ("rate_down", "rate_up")}
        return cls(**{**values, **rates, "outages": outages})


def plain(rtt_ms: float, mbit: float) -> Link:
    """Make a link with a round trip of `rtt_ms` and `mbit` Mbit/s each way, without jitter or loss."""
    return Link(f"{rtt_ms:g}ms-{mbit:g}mbit", rtt=rtt_ms / 1e3, rate_down=mbit * MBIT, rate_up=mbit * MBIT)


PRESETS = {
    link.name: link
    for link in (
        Link("none"),
        Link("lan", rtt=0.0005, rate_down=1000 * MBIT, rate_up=1000 * MBIT),
        Link("wifi", rtt=0.004, rate_down=100 * MBIT, rate_up=100 * MBIT, jitter=0.0005),
        Link("5g", rtt=0.020, rate_down=150 * MBIT, rate_up=20 * MBIT, jitter=0.003),
        Link("4g", rtt=0.050, rate_down=30 * MBIT, rate_up=10 * MBIT, jitter=0.005, loss=0.001),
        Link("3g", rtt=0.300, rate_down=1.6 * MBIT, rate_up=768 * KBIT, jitter=0.020),
        Link("edge", rtt=0.840, rate_down=240 * KBIT, rate_up=200 * KBIT, jitter=0.050),
        Link("tunnel", 0.050, 30 * MBIT, 10 * MBIT, 0.005, 0.001, Outages(period=20.0, length=4.0)),
    )
}
"""The networks by name."""


def named(name: str) -> Link:
    """Return a preset, or a plain link written as "50ms-10mbit".

    Raises:
        ValueError: the name is not valid.
    """
    if name in PRESETS:
        return PRESETS[name]
    rtt, _, rate = name.lower().partition("-")
    if rtt.endswith("ms") and rate.endswith("mbit"):
        try:
            return plain(float(rtt.removesuffix("ms")), float(rate.removesuffix("mbit")))
        except ValueError:
            pass
    raise ValueError(f"No link is called {name!r}. Choose from {', '.join(PRESETS)}, or write one as 50ms-10mbit.")
