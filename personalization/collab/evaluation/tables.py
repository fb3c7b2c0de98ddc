"""Builds tables of systems' measures on the same records, with intervals over users, and converts them to JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from personalization.collab.evaluation.fusion_likelihood import NLL, Likelihood, Sweep, measured
from personalization.collab.logprobs.file import LogProbs
from personalization.measures.by_user import Measured, Sum, compare_by_user, means
from personalization.measures.significance import Comparison

FORMAT = "cogenesis-evaluation/2"
_KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Row:
    """One system's results.

    Attributes:
        system: name of the system.
        scores: scores over all records, by measure.
        against: this system minus the table's baseline, by measure; None for the baseline.
    """

    system: str
    scores: Mapping[str, float]
    against: Mapping[str, Comparison] | None

    def document(self) -> dict[str, Any]:
        """Return the row as JSON."""
        body: dict[str, Any] = {"system": self.system, "scores": dict(self.scores)}
        if self.against is not None:
            body["against"] = {name: found.document() for name, found in self.against.items()}
        return body


@dataclass(frozen=True, slots=True)
class Table:
    """Systems on the same records.

    Attributes:
        baseline: name of the system that the others are compared with.
        rows: one row per system.
    """

    baseline: str
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """Return the table as JSON."""
        return {"baseline": self.baseline, "systems": [row.document() for row in self.rows]}


def table(measured: Mapping[str, Sequence[Measured | None]], baseline: str) -> Table:
    """Compare systems.

    Args:
        measured: each system's measures, one per record in the same order. None excludes the record from that system's
            comparison.
        baseline: name of one of the systems.
    """
    rows = []
    for system, found in measured.items():
        both = [(ours, theirs) for ours, theirs in zip(found, measured[baseline], strict=True) if ours and theirs]
        ours, theirs = [pair[0] for pair in both], [pair[1] for pair in both]
        rows.append(Row(system, means(ours), None if system == baseline else compare_by_user(ours, theirs)))
    return Table(baseline, tuple(rows))


@dataclass(frozen=True, slots=True)
class Calls:
    """A fusion that asks the cloud less often.

    Attributes:
        system: name of the fusion.
        share: share of the tokens for which the cloud is asked.
        nll: nats per token.
        kept: share kept of the gain that always asking has over the better single model.
        kept_over_edge: share kept of the gain over the edge alone, which writes when the cloud is not asked.
        low, high: 95 % interval of `kept_over_edge`, by bootstrap over users.
    """

    system: str
    share: float
    nll: float
    kept: float
    kept_over_edge: float
    low: float
    high: float


def calls_of(
    rows: LogProbs, scheduled: Sequence[Likelihood], always: Likelihood, single: Likelihood, edge: Likelihood
) -> tuple[Calls, ...]:
    """Measure how much gain remains when the cloud is asked less often.

    Args:
        rows: the rows of all these likelihoods.
        scheduled: fusions that ask less often.
        always: the fusion that asks at every token.
        single: the better model alone.
        edge: the edge alone.
    """
    found = []
    for one in (*scheduled, always):
        over_edge = _kept(rows, one, always, edge)
        kept = _kept(rows, one, always, single).score
        found.append(Calls(one.system, one.calls, one.mean, kept, over_edge.score, over_edge.low, over_edge.high))
    return tuple(found)


def _kept(rows: LogProbs, one: Likelihood, always: Likelihood, alone: Likelihood) -> Comparison:
    """Return the share of a gain that remains: a ratio of sums, compared with 0."""
    gained, most = (Likelihood("", alone.nll - with_cloud.nll) for with_cloud in (one, always))
    shares = [
        Measured(some.user, {_KEPT: Sum(some.sums[NLL].total, every.sums[NLL].total)})
        for some, every in zip(measured(rows, gained), measured(rows, most), strict=True)
    ]
    nothing = [Measured(share.user, {_KEPT: Sum(0.0)}) for share in shares]
    return compare_by_user(shares, nothing)[_KEPT]


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """The likelihoods of the references.

    Attributes:
        tokens: number of tokens in the references.
        skipped: records that could not be scored.
        table: table of all systems.
        sweeps: results by fixed weight.
        calls: fusions that ask less often, and the one that always asks.
    """

    tokens: int
    skipped: int
    table: Table
    sweeps: tuple[Sweep, ...]
    calls: tuple[Calls, ...]

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "tokens": self.tokens,
            "skipped": self.skipped,
            **self.table.document(),
            "sweeps": {str(one.strategy): list(zip(one.weights, one.means, strict=True)) for one in self.sweeps},
            "calls": [asdict(one) for one in self.calls],
        }


@dataclass(frozen=True, slots=True)
class Answered:
    """Measures of the answers to `records` records, by system."""

    records: int
    table: Table

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"records": self.records, **self.table.document()}


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's scores by one criterion; for `unjudged` pairs there is no verdict."""

    unjudged: int
    table: Table

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"unjudged": self.unjudged, **self.table.document()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All results of an evaluation; None stands for a skipped part.

    Attributes:
        name: name of the records.
        records, users: number of records and users.
        likelihood: likelihoods of the references.
        answers: measures of the answers.
        judged: the judge's scores, by criterion.
    """

    name: str
    records: int
    users: int
    likelihood: Likelihoods | None
    answers: Answered | None
    judged: Mapping[str, Judged]

    def document(self) -> dict[str, Any]:
        """Return the evaluation as JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "records": self.records,
            "users": self.users,
            "likelihood": self.likelihood and self.likelihood.document(),
            "answers": self.answers and self.answers.document(),
            "judged": {name: found.document() for name, found in self.judged.items()},
        }
