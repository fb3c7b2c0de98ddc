"""Defines all settings for training a model's own weights; with weights and data they determine the result's bytes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from personalization.errors import check_setting
from personalization.training.rate_schedule import RateSchedule


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Settings for training a retriever, a selector or a language model.

    Attributes:
        epochs: number of passes over the examples.
        batch: examples per optimizer step, over all processes.
        rate: peak learning rate of AdamW.
        schedule: see `RateSchedule`.
        warmup: share of the steps in which the rate rises from zero.
        clip: maximum norm of a step's gradient; 0 means no limit.
        weight_decay: weight decay of AdamW; 0 makes it Adam.
        temperature: temperature of the softmaxes; see `personalization.retrievers.losses`.
        save_every: steps between checkpoints; each epoch also ends with one.
        seed: seed of order, dropout and sampling.
        threads: CPU threads per process. Their number changes the order of sums, and so the last bits.
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
        check_setting("epochs", self.epochs, self.epochs >= 1, "at least 1")
        check_setting("batch", self.batch, self.batch >= 1, "at least 1")
        check_setting("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        check_setting("warmup", self.warmup, 0 <= self.warmup <= 1, "in 0 .. 1")
        check_setting("clip", self.clip, 0 <= self.clip < math.inf, "at least 0")
        check_setting("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        check_setting("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0")
        check_setting("save_every", self.save_every, self.save_every >= 1, "at least 1")
        check_setting("threads", self.threads, self.threads >= 1, "at least 1")

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON, without those that never change the result."""
        body = asdict(self)
        del body["save_every"]
        return body
