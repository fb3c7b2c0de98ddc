"""How a model's own weights are trained: everything, beside weights and data, that the result's bytes depend on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from personalization.errors import SettingsError
from personalization.training.rate_schedule import RateSchedule


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Settings of a training of a retriever, a selector or a language model.

    Attributes:
        epochs: passes over the examples.
        batch: examples of an optimizer step, over all processes.
        rate: highest learning rate, of AdamW.
        schedule: see `RateSchedule`.
        warmup: share of the steps in which the rate rises from zero.
        clip: highest norm of a step's gradient; 0 for any.
        weight_decay: of AdamW; with 0 it is Adam.
        temperature: of the softmaxes; see `personalization.retrievers.losses`.
        save_every: steps after which the run is saved, beside the ends of epochs.
        seed: of order, dropout and draws.
        threads: of the processor, in a process. Sums are taken in another order with another number.
    """

    epochs: int = 10
    batch: int = 16
    rate: float = 1e-5
    schedule: RateSchedule = RateSchedule.LINEAR
    warmup: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.0
    temperature: float = 1.0
    save_every: int = 100
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("batch", self.batch, self.batch >= 1, "at least 1")
        _check("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        _check("warmup", self.warmup, 0 <= self.warmup <= 1, "in 0 .. 1")
        _check("clip", self.clip, 0 <= self.clip < math.inf, "at least 0")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0")
        _check("save_every", self.save_every, self.save_every >= 1, "at least 1")
        _check("threads", self.threads, self.threads >= 1, "at least 1")

    def document(self) -> dict[str, Any]:
        """The settings as JSON, without those that change no bit of the result."""
        body = asdict(self)
        del body["save_every"]
        return body


def _check(name: str, value: object, holds: bool, form: str) -> None:
    if not holds:
        raise SettingsError(f"The setting {name} must be {form}, not {value}.")
