"""The ways to write an answer that `collab evaluate` compares, by names that a command line can carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edge_runtime.errors import RequestError
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.generation.schedule import LearnedSchedule, Schedule, parse_schedule
from personalization.errors import SettingsError


class Writer(StrEnum):
    """Who writes.

    EDGE: the device with the private context, as it writes when there is no cloud. EDGE_WITHOUT: from the public
    instruction alone. CLOUD: the cloud from the public instruction. CLOUD_WITH: the cloud's model with the private
    context, which no real cloud may ever see: what could be had at most. SKETCH: the device with the private context
    and an outline by the cloud. FUSED: both, token by token.
    """

    EDGE = "edge"
    EDGE_WITHOUT = "edge-without"
    CLOUD = "cloud"
    CLOUD_WITH = "cloud-with"
    SKETCH = "sketch"
    FUSED = "fused"


@dataclass(frozen=True, slots=True)
class System:
    """One of them.

    Attributes:
        name: as it was asked for.
        writer: who writes.
        fusion: how both distributions become one, where both write.
        schedule: at which steps the cloud is asked then.
    """

    name: str
    writer: Writer
    fusion: Fusion = field(default_factory=Fusion)
    schedule: Schedule | LearnedSchedule = field(default_factory=Schedule)


def parse_system(name: str) -> System:
    """Read a system's name.

    Args:
        name: a `Writer` but FUSED; or STRATEGY[:WEIGHT][@P,K,T | @learned[:SHARE]], such as "arithmetic:0.8@0,1,1" or
            "learned".

    Raises:
        SettingsError: there is no such system.
    """
    plain = [str(writer) for writer in Writer if writer is not Writer.FUSED]
    if name in plain:
        return System(name, Writer(name))
    how, _, when = name.partition("@")
    strategy, _, weight = how.partition(":")
    if strategy not in list(Strategy):
        raise SettingsError(
            f"There is no system '{name}'. Use one of {', '.join(plain)}, or a strategy ({', '.join(Strategy)}), with "
            "or without a weight and a schedule, such as arithmetic:0.8@0,1,1."
        )
    usual = 1.0 if strategy == Strategy.DELTA else 0.5
    try:
        fusion = Fusion(Strategy(strategy), float(weight) if weight else usual)
        return System(name, Writer.FUSED, fusion, parse_schedule(when) if when else Schedule())
    except RequestError as error:
        raise SettingsError(f"There is no system '{name}'. {error}") from None
    except ValueError:
        raise SettingsError(f"There is no system '{name}': its weight is no number.") from None


def file_stem(system: str) -> str:
    """A system's name as part of a file's."""
    return system.replace(":", "-").replace("@", "-").replace(",", "-")
