"""Defines the settings for training a combiner."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from personalization.errors import check_setting


@dataclass(frozen=True, slots=True)
class CombinerSettings:
    """Settings of the compact combiner.

    Attributes:
        without: whether to also read the edge's rows without context; the device then runs a second sequence.
        calls: share of the steps at which the learned schedule may ask the cloud.
        members: number of networks; the combiner averages them.
        hidden: width of each network.
        gain_hidden: width of the schedule's network.
        epochs: maximum number of epochs.
        patience: training ends after this many epochs without improvement.
        batch: rows per step.
        rate: peak learning rate.
        decay: weight decay.
        seed: random seed.
        threads: CPU threads.
    """

    without: bool = False
    calls: float = 0.48
    members: int = 4
    hidden: int = 16
    gain_hidden: int = 8
    epochs: int = 30
    patience: int = 8
    batch: int = 256
    rate: float = 1e-3
    decay: float = 0.3
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        check_setting("calls", self.calls, 0.0 < self.calls <= 1.0, "above 0 and at most 1")
        for name in ("members", "hidden", "gain_hidden", "epochs", "patience", "batch", "threads"):
            check_setting(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check_setting("rate", self.rate, self.rate > 0.0, "above 0")
        check_setting("decay", self.decay, self.decay >= 0.0, "at least 0")

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)
