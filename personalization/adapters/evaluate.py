"""Evaluates an adapter: compares the likelihood of a user's unseen answers with and without it."""

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
    """The parameters of a judge; they are sent to other processes.

    Attributes:
        model: directory of the base model.
        base: digest of the base model's weights.
        adapters: directory that contains the users' adapter directories.
        threads: number of CPU threads.
        max_length: maximum number of tokens in prompt and answer; history that does not fit is left out.
        context: whether to measure with profile and history in the prompt as well.
    """

    model: Path
    base: str
    adapters: Path
    threads: int
    max_length: int
    context: bool = True


@dataclass(frozen=True, slots=True)
class Questions:
    """A user's tasks with that user's own answers, and the rest of the user's data."""

    data: UserData
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean negative log-likelihood per answer token in nats, for the base alone and with the adapter."""

    base: float
    adapter: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One user's likelihoods.

    Attributes:
        tokens: number of answer tokens, without end markers.
        likelihoods: likelihood by condition, "task alone" or "with context".
    """

    tokens: int
    likelihoods: Mapping[str, Likelihood]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of all users under one condition.

    Attributes:
        users: number of users.
        base, adapter: mean over users of the mean negative log-likelihood, nats per token.
        difference: mean of adapter - base; below 0 where adapters help.
        low, high: 95 % confidence interval of the difference, by bootstrap over users.
        improved: number of users whose answers are more likely with their adapter.
    """

    users: int
    base: float
    adapter: float
    difference: float
    low: float
    high: float
    improved: int

    def document(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return asdict(self)


class AdapterJudge:
    """Measures users' adapters one after another on the same base."""

    def __init__(self, spec: JudgeSpec) -> None:
        """Load the base.

        Raises:
            CogenesisError: the base can't be loaded or is not a supported model.
        """
        prepare_libraries()
        from personalization.models.base_model import Base

        self._spec = spec
        self._base = Base(spec.model, spec.threads)

    def __call__(self, job: Questions) -> Judged:
        """Measure one user's adapter.

        Raises:
            TrainingError: the user has no adapter, or it is damaged or belongs to another base.
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
    """Return the mean negative log-likelihood per token of the answers' own text in nats, with the current adapter."""
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
    """Compare over all users; every user has the same weight.

    Args:
        likelihoods: one per user, at least one.
        seed: seed of the bootstrap.
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
