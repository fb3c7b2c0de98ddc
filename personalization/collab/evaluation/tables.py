"""Puts measures of many systems on the same records into tables, each with intervals over users; all of it as JSON."""

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
    """One system.

    Attributes:
        system: its name.
        scores: by measure, over all records.
        against: by measure, this system minus the table's baseline; None for that itself.
    """

    system: str
    scores: Mapping[str, float]
    against: Mapping[str, Comparison] | None

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
        body: dict[str, Any] = {"system": self.system, "scores": dict(self.scores)}
        if self.against is not None:
            body["against"] = {name: found.document() for name, found in self.against.items()}
        return body


@dataclass(frozen=True, slots=True)
class Table:
    """Systems on the same records.

    Attributes:
        baseline: that the others are compared with.
        rows: one a system.
    """

    baseline: str
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """The table as JSON."""
        return {"baseline": self.baseline, "systems": [row.document() for row in self.rows]}


def table(measured: Mapping[str, Sequence[Measured | None]], baseline: str) -> Table:
    """Compare systems.

    Args:
        measured: by system, a measure of every record in the same order; None where there is none, which leaves the
            record out of that system's comparison.
        baseline: one of them.
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
        system: its name.
        share: of the tokens for which the cloud is asked.
        nll: nats a token.
        kept: share of what always asking gains over the better single model.
        kept_over_edge: share of what it gains over the edge, which writes where nobody is asked.
        low, high: its 95 % interval, by bootstrap over users.
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
    """What asking less costs.

    Args:
        rows: what all these likelihoods are of.
        scheduled: fusions that ask less.
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
    """The share of a gain that stays: a ratio of sums, held against 0."""
    gained, most = (Likelihood("", alone.nll - with_cloud.nll) for with_cloud in (one, always))
    shares = [
        Measured(some.user, {_KEPT: Sum(some.sums[NLL].total, every.sums[NLL].total)})
        for some, every in zip(measured(rows, gained), measured(rows, most), strict=True)
    ]
    nothing = [Measured(share.user, {_KEPT: Sum(0.0)}) for share in shares]
    return compare_by_user(shares, nothing)[_KEPT]


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """How likely the references are.

    Attributes:
        tokens: of the references.
        skipped: records that could not be scored.
        table: of all systems.
        sweeps: of the fixed weights.
        calls: of fusions that ask less often, and of the one that always asks.
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
    """What answers are like: of so many `records`, by system."""

    records: int
    table: Table

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"records": self.records, **self.table.document()}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge says of answers by one criterion; of `unjudged` pairs, nothing."""

    unjudged: int
    table: Table

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"unjudged": self.unjudged, **self.table.document()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured; None is what was not.

    Attributes:
        name: of the records.
        records, users: how many.
        likelihood: of the references.
        answers: that systems wrote.
        judged: by criterion.
    """

    name: str
    records: int
    users: int
    likelihood: Likelihoods | None
    answers: Answered | None
    judged: Mapping[str, Judged]

    def document(self) -> dict[str, Any]:
        """The evaluation as JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "records": self.records,
            "users": self.users,
            "likelihood": self.likelihood and self.likelihood.document(),
            "answers": self.answers and self.answers.document(),
            "judged": {name: found.document() for name, found in self.judged.items()},
        }
