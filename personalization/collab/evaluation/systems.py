"""Defines the systems that `collab evaluate` compares, and their names on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edge_runtime.errors import RequestError
from edge_runtime.fusion.fuse import Fusion, Strategy, usual_weight
from edge_runtime.generation.schedule import LearnedSchedule, Schedule, parse_schedule
from personalization.errors import SettingsError


class Writer(StrEnum):
    """The model that writes.

    EDGE: the device with the private context, as without a cloud. EDGE_WITHOUT: the device from the public instruction
    alone. CLOUD: the cloud from the public instruction. CLOUD_WITH: the cloud's model with the private context, which
    no real cloud may see; an upper limit. SKETCH: the device with the private context and an outline by the cloud.
    FUSED: both, token by token.
    """

    EDGE = "edge"
    EDGE_WITHOUT = "edge-without"
    CLOUD = "cloud"
    CLOUD_WITH = "cloud-with"
    SKETCH = "sketch"
    FUSED = "fused"


@dataclass(frozen=True, slots=True)
class System:
    """One system to compare.

    Attributes:
        name: name as given by the user.
        writer: the model that writes.
        fusion: how the distributions are fused, if both models write.
        schedule: the steps at which the cloud is asked, if both models write.
    """

    name: str
    writer: Writer
    fusion: Fusion = field(default_factory=Fusion)
    schedule: Schedule | LearnedSchedule = field(default_factory=Schedule)


def parse_system(name: str) -> System:
    """Parse a system's name.

    Args:
        name: a `Writer` except FUSED; or STRATEGY[:WEIGHT][@P,K,T | @learned[:SHARE]], such as "arithmetic:0.8@0,1,1"
            or "learned".

    Raises:
        SettingsError: the system does not exist.
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
    try:
        fusion = Fusion(Strategy(strategy), float(weight) if weight else usual_weight(Strategy(strategy)))
        return System(name, Writer.FUSED, fusion, parse_schedule(when) if when else Schedule())
    except RequestError as error:
        raise SettingsError(f"There is no system '{name}'. {error}") from None
    except ValueError:
        raise SettingsError(f"There is no system '{name}': its weight is no number.") from None


def file_stem(system: str) -> str:
    """Return a system's name in a form for file names."""
    return system.replace(":", "-").replace("@", "-").replace(",", "-")
