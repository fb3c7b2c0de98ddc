"""Measures what an adapter is worth: how likely a user's own answers, never trained on, are with it and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.adapters.store import directory_name
from personalization.adapters.trained_adapter import load_adapter
from personalization.models.libraries import prepare_libraries
from personalization.users.data import Pair, UserData

if TYPE_CHECKING:
    from personalization.models.base_model import Base
    from personalization.models.examples import Example

ALONE, CONTEXT = "task alone", "with context"
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """What a judge is made of; it travels to other processes.

    Attributes:
        model: the base's directory.
        base: digest of its weights.
        adapters: directory of users' directories.
        threads: of the processor.
        max_length: most tokens of prompt and answer; history that does not fit is left out.
        context: whether to measure with profile and history in the prompt too.
    """

    model: Path
    base: str
    adapters: Path
    threads: int
    max_length: int
    context: bool = True


@dataclass(frozen=True, slots=True)
class Questions:
    """A user's tasks with the answers that they gave, and what is known of the user otherwise."""

    data: UserData
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean negative log-likelihood, in nats, of a token of the answers: of the base alone and with the adapter."""

    base: float
    adapter: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A user's likelihoods.

    Attributes:
        tokens: of the answers, marks of the end not counted.
        likelihoods: by condition, "task alone" or "with context".
    """

    tokens: int
    likelihoods: Mapping[str, Likelihood]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All users under one condition.

    Attributes:
        users: how many.
        base, adapter: means over users of their mean negative log-likelihood, nats a token.
        difference: mean of adapter - base; below 0 where adapters help.
        low, high: its 95 % interval, by bootstrap over users.
        improved: users whose answers are likelier with their adapter.
    """

    users: int
    base: float
    adapter: float
    difference: float
    low: float
    high: float
    improved: int

    def document(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return asdict(self)


class AdapterJudge:
    """Measures users' adapters, one after the other, on one base."""

    def __init__(self, spec: JudgeSpec) -> None:
        """Load the base.

        Raises:
            CogenesisError: it can't be loaded, or is no model for this.
        """
        prepare_libraries()
        from personalization.models.base_model import Base

        self._spec = spec
        self._base = Base(spec.model, spec.threads)

    def __call__(self, job: Questions) -> Judged:
        """Measure one user's adapter.

        Raises:
            TrainingError: there is no adapter of the user, it is damaged, or it belongs to another base.
        """
        config, state = load_adapter(self._spec.adapters / directory_name(job.data.user), self._spec.base)
        write, length = self._base.writer.write_all, self._length()
        asked = {ALONE: write(job.pairs, length)}
        if self._spec.context:
            asked[CONTEXT] = write(job.pairs, length, profile=job.data.profile, history=job.data.pairs)
        without = {name: own_loss(self._base, examples) for name, examples in asked.items()}
        with self._base.saved_adapter(config, state):
            found = {name: own_loss(self._base, examples) for name, examples in asked.items()}
        tokens = sum(len(example.answer) - example.ending for example in asked[ALONE])
        return Judged(tokens, {name: Likelihood(without[name], found[name]) for name in asked})

    def _length(self) -> int:
        return min(self._spec.max_length, self._base.context_length or self._spec.max_length)


def own_loss(base: Base, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood of a token of the answers' own text, with the adapter as it is; nats."""
    import torch

    base.train(False)
    total = tokens = 0.0
    with torch.no_grad():
        for example in examples:
            own = len(example.answer) - example.ending
            total += float(base.losses([example])[0, :own].double().sum())
            tokens += own
    return total / tokens


def compare(likelihoods: Sequence[Likelihood], *, seed: int = 0) -> Comparison:
    """Sum up users, each counting the same.

    Args:
        likelihoods: one a user, at least one.
        seed: of the resampling.
    """
    base, adapter = (np.array([getattr(found, name) for found in likelihoods]) for name in ("base", "adapter"))
    differences = adapter - base
    chosen = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(differences[chosen].mean(axis=1), (0.025, 0.975))
    return Comparison(
        users=len(differences),
        base=float(base.mean()),
        adapter=float(adapter.mean()),
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        improved=int((differences < 0).sum()),
    )
