"""How a combiner is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from personalization.errors import SettingsError


@dataclass(frozen=True, slots=True)
class CombinerSettings:
    """Settings of the compact combiner.

    Attributes:
        without: read the edge's rows without context, too; the device then runs a second sequence.
        calls: share of the steps at which the learned schedule may ask the cloud.
        members: networks whose mean the combiner is.
        hidden: width of each.
        gain_hidden: width of the schedule's.
        epochs: at most.
        patience: epochs without a better one after which training ends.
        batch: rows of a step.
        rate: highest learning rate.
        decay: of the weights.
        seed: of all that is random.
        threads: of the processor.
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
        if not 0.0 < self.calls <= 1.0:
            raise SettingsError(f"--calls must lie above 0 and at most 1, not {self.calls:g}.")
        for name in ("members", "hidden", "gain_hidden", "epochs", "patience", "batch", "threads"):
            if getattr(self, name) < 1:
                raise SettingsError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if not self.rate > 0.0 or not self.decay >= 0.0:
            raise SettingsError("--rate must be above 0, and --decay not below.")

    def document(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)
