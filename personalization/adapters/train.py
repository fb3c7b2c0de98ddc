"""Trains one user's adapter: the same data, settings and base give the same bytes, whatever was trained before."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from personalization.adapters.lora_config import lora_config
from personalization.adapters.trained_adapter import TrainedAdapter, TrainingReport
from personalization.errors import TrainingError
from personalization.models.base_model import Base
from personalization.models.examples import Example
from personalization.training.batches import passes_of, rate_factor, steps_of_epoch
from personalization.users.data import UserData, user_seed
from personalization.users.held_out import split_pairs

if TYPE_CHECKING:
    from peft import LoraConfig

    from personalization.adapters.settings import AdapterSettings


def train_user(base: Base, data: UserData, settings: AdapterSettings) -> TrainedAdapter:
    """Train an adapter on a user's pairs.

    Where pairs are held out (see `personalization.users.held_out`) their loss is taken after each epoch; training stops
    when it has not fallen for `settings.patience` epochs, and the adapter is kept as it was where that loss was lowest,
    be it at the very beginning. Otherwise training goes on to its end, and its end is kept.

    Args:
        base: without an adapter; it is left as it was.
        data: the user's.
        settings: how to train.

    Raises:
        TrainingError: there is nothing to train on, the profile fills the prompt, or the loss is no finite number.
        SettingsError: the model has none of the layers that should be adapted.
    """
    if not data.pairs:
        raise TrainingError("There is nothing to train on: the profile has no items.")
    seed = user_seed(settings.seed, data.user)
    split = split_pairs(data.pairs, settings.held_out, seed)
    history = split.training if settings.with_context else None
    length = min(settings.max_length, base.context_length or settings.max_length)
    training, judges = (
        base.writer.write_all(pairs, length, profile=data.profile, history=history)
        for pairs in (split.training, split.held_out)
    )
    config = lora_config(base, settings)
    with base.new_adapter(config, seed):
        run = _Run(base, training, judges, settings, random.Random(f"{seed}\0order"))
        before, after = run.train()
        report = TrainingReport(
            examples=len(training),
            held_out=len(judges),
            tokens=sum(len(example.answer) for example in training),
            cut=sum(example.cut for example in (*training, *judges)),
            skipped=data.skipped,
            steps=run.steps_made,
            kept_step=run.kept_step,
            judged_by="held-out" if judges else "training",
            before=before,
            after=after,
        )
        return TrainedAdapter(config_document(config), base.state(), report)


def mean_loss(base: Base, examples: Sequence[Example], pass_tokens: int) -> float:
    """Mean negative log-likelihood of an answer token, marks of the end included, with the adapter as it is."""
    base.train(False)
    with torch.no_grad():
        total = sum(float(base.losses(part).double().sum()) for part in passes_of(examples, pass_tokens))
    return total / sum(len(example.answer) for example in examples)


def config_document(config: LoraConfig) -> dict[str, Any]:
    """PEFT's configuration as JSON, the same in every process: sets become sorted lists."""
    # What is no longer to be trained; PEFT writes it so too.
    fields = {**config.to_dict(), "inference_mode": True}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


class _Run:
    """One training: optimizer, learning rate and the best state so far."""

    def __init__(
        self,
        base: Base,
        training: Sequence[Example],
        judges: Sequence[Example],
        settings: AdapterSettings,
        order: random.Random,
    ) -> None:
        self.steps_made = self.kept_step = 0
        self._base = base
        self._training = training
        self._judges = judges
        self._settings = settings
        self._order = order
        # One tensor after the other: the sums of the fused forms depend on how many there are.
        self._optimizer = torch.optim.AdamW(
            base.parameters, lr=settings.rate, weight_decay=settings.weight_decay, foreach=False, fused=False
        )
        self._steps = settings.steps or settings.epochs * math.ceil(len(training) / settings.batch)

    def train(self) -> tuple[float, float]:
        """Loss of the judges (of the training pairs, if there are none) before and after."""
        judges, most = self._judges or self._training, self._settings.pass_tokens
        before = lowest = _finite(mean_loss(self._base, judges, most), 0)
        best, waited = self._base.state() if self._judges else None, 0
        for _ in self._epochs():
            if best is None:
                continue
            loss = _finite(mean_loss(self._base, judges, most), self.steps_made)
            waited += 1
            if loss < lowest:
                lowest, best, waited, self.kept_step = loss, self._base.state(), 0, self.steps_made
            if waited >= self._settings.patience:
                break
        if best is not None:
            self._base.restore(best)
            return before, lowest
        self.kept_step = self.steps_made
        return before, _finite(mean_loss(self._base, judges, most), self.steps_made)

    def _epochs(self) -> Iterator[None]:
        while self.steps_made < self._steps:
            for step in steps_of_epoch(len(self._training), self._settings.batch, self._order):
                self._step([self._training[index] for index in step])
                if self.steps_made == self._steps:
                    break
            yield

    def _step(self, examples: Sequence[Example]) -> None:
        settings = self._settings
        self._base.train(True)
        tokens = sum(len(example.answer) for example in examples)
        total = 0.0
        for part in passes_of(examples, settings.pass_tokens):
            loss = self._base.losses(part).sum() / tokens
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self._base.parameters, settings.clip or math.inf, foreach=False)
        _finite(total + float(norm), self.steps_made)
        factor = rate_factor(settings.schedule, self.steps_made, self._steps, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps_made += 1


def _finite(number: float, step: int) -> float:
    if not math.isfinite(number):
        raise TrainingError(
            f"The loss is not a finite number after {step} steps. Use a lower --rate, or check the model."
        )
    return number
