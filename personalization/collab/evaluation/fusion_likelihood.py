"""Computes the likelihood of reference answers under every fusion, weight and schedule, from a log-prob file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.combiner import Combiner
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.generation.schedule import LearnedSchedule, Schedule
from personalization.collab.combiner.fused_nll import asks, fused_nll
from personalization.collab.combiner.rows import asks_by_worth, combiner_rows
from personalization.collab.evaluation.systems import Writer
from personalization.collab.logprobs.file import STEERING, LogProbs
from personalization.measures.by_user import Measured, Sum

NLL = "nll"
"""Name of the measure: negative log-likelihood, in nats per token of the reference."""

SENT = "cloud-sent"
"""Name of the cloud alone if only the sent part of its rows is known."""

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Weights of the fixed mixes to try."""

_SCHEDULES = (Schedule(0, 3, 1), Schedule(0, 2, 1), Schedule(0, 1, 1), Schedule(0, 1, 2), Schedule(0, 1, 3))

_BUDGETS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of the references under one system.

    Attributes:
        system: name of the system.
        nll: (n,) float64, nats per row.
        calls: share of the rows for which the cloud is asked.
    """

    system: str
    nll: NDArray[np.float64]
    calls: float = 0.0

    @property
    def mean(self) -> float:
        """Nats per token over all records."""
        return float(self.nll.mean())


@dataclass(frozen=True, slots=True)
class Sweep:
    """Mean nats per token of one strategy, by its weight."""

    strategy: Strategy
    weights: tuple[float, ...]
    means: tuple[float, ...]


def single_models(rows: LogProbs) -> list[Likelihood]:
    """Return each model alone: the edge with the context, the edge without it (if scored), and the cloud.

    The cloud appears with its complete rows, if known (a served cloud does not send them), and with the rows that it
    sends, completed with the edge's tail.
    """
    found = [Likelihood(Writer.EDGE, rows.edge_nll)]
    if (bare := rows.without_nll) is not None:
        found.append(Likelihood(Writer.EDGE_WITHOUT, bare))
    sent = Likelihood(SENT, fused_nll(rows, Fusion(Strategy.ARITHMETIC, 0.0)), 1.0)
    if np.isnan(rows.cloud_nll).any():
        return [*found, sent]
    return [*found, Likelihood(Writer.CLOUD, rows.cloud_nll, 1.0), sent]


def sweeps(rows: LogProbs) -> tuple[Sweep, ...]:
    """Return every weighted strategy at each of `WEIGHTS` (delta steering: `STEERING`)."""
    tried = [(Strategy.GEOMETRIC, WEIGHTS), (Strategy.ARITHMETIC, WEIGHTS)]
    if rows.without is not None:
        tried.append((Strategy.DELTA, STEERING))
    return tuple(
        Sweep(strategy, weights, tuple(float(fused_nll(rows, Fusion(strategy, weight)).mean()) for weight in weights))
        for strategy, weights in tried
    )


def fixed_mixes(rows: LogProbs, found: Sequence[Sweep]) -> list[Likelihood]:
    """Return each strategy with its best weight on these very rows, which no real system could know, and the maximum.

    They are the reference for a trained combiner: with weights chosen on other users they are worse.
    """
    best = [Fusion(one.strategy, one.weights[int(np.argmin(one.means))]) for one in found]
    mixes = [Likelihood(f"{mix.strategy}:{mix.weight:g}", fused_nll(rows, mix), 1.0) for mix in best]
    return [*mixes, Likelihood(Strategy.MAX, fused_nll(rows, Fusion(Strategy.MAX)), 1.0)]


def best_of(likelihoods: Sequence[Likelihood]) -> Likelihood:
    """Return the system under which the references are likeliest."""
    return min(likelihoods, key=lambda one: one.mean)


def by_schedule(rows: LogProbs, fused: Likelihood) -> list[Likelihood]:
    """Return the same fusion under P/K/T schedules that leave some steps to the edge alone."""
    found = []
    for schedule in _SCHEDULES:
        asked = asks(rows, schedule)
        name = f"{fused.system}@{schedule.first},{schedule.without},{schedule.turn}"
        found.append(Likelihood(name, np.where(asked, fused.nll, rows.edge_nll), float(asked.mean())))
    return found


def learned(rows: LogProbs, combiner: Combiner) -> Likelihood:
    """Return the likelihood of a trained combiner that always asks the cloud."""
    return Likelihood(Strategy.LEARNED, fused_nll(rows, Fusion(Strategy.LEARNED, combiner=combiner)), 1.0)


def by_learned_schedule(rows: LogProbs, fused: Likelihood, combiner: Combiner) -> list[Likelihood]:
    """Return the same fusion under the combiner's schedule: as shipped, and with several shares.

    For comparison, each share is also tried over all rows at once: the cloud is asked where the worth is largest, by
    the predicted worth, and by the true worth, KL(fused || edge). The true worth bounds every prediction, because no
    answer then has to keep to the share.
    """
    found = list(combiner_rows(rows, without=combiner.uses_without))
    worths = np.array([combiner.worth(row.of_edge) for row in found])
    changes = np.array([row.candidates.divergence(combiner.mix(row.candidates, row.step)) for row in found])

    def asking(name: str, asked: NDArray[np.bool_]) -> Likelihood:
        asked = asked | (rows.step == 0)
        nll = np.where(asked, fused.nll, rows.edge_nll)
        return Likelihood(f"{fused.system}@{name}", nll, float(asked.mean()))

    shares = [LearnedSchedule(combiner, share) for share in _BUDGETS]
    return [
        asking("learned", worths >= combiner.threshold),
        *(asking(f"learned:{one.share:g}", asks_by_worth(rows, worths, combiner.threshold, one)) for one in shares),
        *(asking(f"predicted {share:.0%}", worths >= np.quantile(worths, 1 - share)) for share in _BUDGETS),
        *(asking(f"known {share:.0%}", changes >= np.quantile(changes, 1 - share)) for share in _BUDGETS),
    ]


def measured(rows: LogProbs, likelihood: Likelihood) -> list[Measured]:
    """Return the likelihood by record, in the order of the file."""
    nats = np.bincount(rows.record_of, likelihood.nll, len(rows.records))
    return [
        Measured(record.user, {NLL: Sum(float(total), record.rows)})
        for record, total in zip(rows.records, nats, strict=True)
    ]
