"""Defines all settings for training an adapter; with base model and data they determine its bytes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edge_runtime.adapters.adapter import MAX_RANK
from personalization.errors import check_setting
from personalization.training.rate_schedule import RateSchedule, parse_rate_schedule


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Settings for training an adapter.

    The defaults suit 4 to 50 short texts per user; docs/adapters.md explains how they were chosen.

    Attributes:
        rank: rank of the matrices A and B.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout rate on the inputs of A in training.
        targets: "qv", "attention", "all" (linear layers), or module names separated by commas.
        epochs: number of passes over the user's items.
        steps: number of optimizer steps, instead of epochs.
        rate: peak learning rate of AdamW.
        schedule: see `RateSchedule`.
        warmup: share of the steps in which the rate rises from zero.
        batch: items per optimizer step.
        pass_tokens: maximum tokens, including padding, per pass through the model; limits the memory. A step runs as
            many passes as needed (gradient accumulation), each over items of similar length.
        weight_decay: weight decay of AdamW.
        clip: maximum norm of a step's gradient; 0 means no limit.
        held_out: share of a user's items that is held out for early stopping; see `personalization.users.held_out`.
        patience: training stops after this many epochs without a lower loss on the held-out items.
        max_length: maximum tokens of prompt and answer; longer items are truncated.
        with_context: whether to train on prompts with the user's profile and other items, instead of the task alone.
        seed: seed of initial weights, order and dropout, together with the user's id.
        threads: CPU threads. Their number changes the order of sums, so it counts as a setting.
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
        check_setting("rank", self.rank, 1 <= self.rank <= MAX_RANK, f"in 1 .. {MAX_RANK}")
        check_setting("alpha", self.alpha, 0 < self.alpha < math.inf, "above 0")
        check_setting("dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and below 1")
        check_setting(
            "targets", self.targets, all(name.strip() for name in self.targets.split(",")), "names, by commas"
        )
        check_setting("epochs", self.epochs, self.epochs >= 1, "at least 1")
        check_setting("steps", self.steps, self.steps is None or self.steps >= 1, "at least 1")
        check_setting("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        check_setting("warmup", self.warmup, 0 <= self.warmup <= 1, "in 0 .. 1")
        check_setting("batch", self.batch, self.batch >= 1, "at least 1")
        check_setting("pass_tokens", self.pass_tokens, self.pass_tokens >= 1, "at least 1")
        check_setting("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        check_setting("clip", self.clip, 0 <= self.clip < math.inf, "at least 0")
        check_setting("held_out", self.held_out, 0 <= self.held_out < 1, "at least 0 and below 1")
        check_setting("patience", self.patience, self.patience >= 1, "at least 1")
        check_setting("max_length", self.max_length, self.max_length >= SHORTEST, f"at least {SHORTEST}")
        check_setting("threads", self.threads, self.threads >= 1, "at least 1")

    def document(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)


SHORTEST = 16
"""Minimum value of `max_length`, in tokens."""
