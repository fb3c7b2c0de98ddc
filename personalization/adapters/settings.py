"""How an adapter is trained: everything, beside base and data, that its bytes depend on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edge_runtime.adapters.adapter import MAX_RANK
from personalization.errors import SettingsError
from personalization.training.rate_schedule import RateSchedule, parse_rate_schedule


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Settings of a training.

    Defaults are for some 4 to 50 short texts of a user; docs/adapters.md says what they were chosen by.

    Attributes:
        rank: of the matrices A and B.
        alpha: the update is scaled by alpha / rank.
        dropout: share of the inputs of A that is dropped in training.
        targets: "qv", "attention", "all" (linear layers), or names of modules, by commas.
        epochs: passes over the user's items.
        steps: optimizer steps instead of epochs.
        rate: highest learning rate, of AdamW.
        schedule: see `RateSchedule`.
        warmup: share of the steps in which the rate rises from zero.
        batch: items of an optimizer step.
        pass_tokens: most tokens, padding included, of a pass through the model; a step makes as many passes as it needs
            (gradient accumulation), each over items of about the same length. Bounds the memory.
        weight_decay: of AdamW.
        clip: highest norm of a step's gradient; 0 for none.
        held_out: share of a user's items that is held out for early stopping; see `personalization.users.held_out`.
        patience: epochs without a lower loss on those before training stops.
        max_length: most tokens of prompt and answer; longer items are cut.
        with_context: train on prompts with the user's profile and other items, instead of the task alone.
        seed: of initial weights, order and dropout, together with the user's id.
        threads: of the processor. Sums are taken in another order with another number, so it is a setting like others.
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = "qv"
    epochs: int = 4
    steps: int | None = None
    rate: float = 1e-3
    schedule: RateSchedule = RateSchedule.LINEAR
    warmup: float = 0.1
    batch: int = 1
    pass_tokens: int = 1024
    weight_decay: float = 0.0
    clip: float = 1.0
    held_out: float = 0.1
    patience: int = 2
    max_length: int = 1024
    with_context: bool = False
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", parse_rate_schedule(self.schedule))
        _check("rank", self.rank, 1 <= self.rank <= MAX_RANK, f"in 1 .. {MAX_RANK}")
        _check("alpha", self.alpha, 0 < self.alpha < math.inf, "above 0")
        _check("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1")
        _check("targets", self.targets, all(name.strip() for name in self.targets.split(",")), "names, by commas")
        _check("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("steps", self.steps, self.steps is None or self.steps >= 1, "at least 1")
        _check("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        _check("warmup", self.warmup, 0 <= self.warmup <= 1, "in 0 .. 1")
        _check("batch", self.batch, self.batch >= 1, "at least 1")
        _check("pass_tokens", self.pass_tokens, self.pass_tokens >= 1, "at least 1")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _check("clip", self.clip, 0 <= self.clip < math.inf, "at least 0")
        _check("held_out", self.held_out, 0 <= self.held_out < 1, "at least 0 and below 1")
        _check("patience", self.patience, self.patience >= 1, "at least 1")
        _check("max_length", self.max_length, self.max_length >= SHORTEST, f"at least {SHORTEST}")
        _check("threads", self.threads, self.threads >= 1, "at least 1")

    def document(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)


SHORTEST = 16
"""Fewest tokens of prompt and answer that a length may allow."""


def _check(name: str, value: object, holds: bool, form: str) -> None:
    if not holds:
        raise SettingsError(f"The setting {name} must be {form}, not {value}.")
