"""Measures how likely reference answers are: by each model, by every fusion, and when the cloud is asked less often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from personalization.collab.evaluation.fusion_likelihood import (
    SENT,
    Likelihood,
    best_of,
    by_schedule,
    fixed_mixes,
    measured,
    single_models,
    sweeps,
)
from personalization.collab.evaluation.reference_likelihood import ReferencePlan, reference_nll
from personalization.collab.evaluation.systems import Writer
from personalization.collab.evaluation.tables import Likelihoods, calls_of, table
from personalization.collab.logprobs.file import LogProbs
from personalization.collab.logprobs.model_spec import ModelSpec
from personalization.collab.records.records import CollabRecord
from personalization.collab.records.shown import Shown
from personalization.errors import DataError, SettingsError
from personalization.measures.by_user import Measured

_WRITERS = (Writer.EDGE, Writer.CLOUD, SENT)


@dataclass(frozen=True, slots=True)
class Beside:
    """A model that is measured by itself: its name, who it is, and what its prompt shows."""

    name: str
    model: ModelSpec
    shown: Shown


def measure_likelihood(
    records: Sequence[CollabRecord],
    rows: LogProbs,
    learned: Sequence[Likelihood],
    scheduled: Sequence[Likelihood],
    beside: Sequence[Beside],
    out: Path,
    *,
    force: bool = False,
    report: Callable[[str, int, int], None],
) -> Likelihoods:
    """Measure every system.

    Args:
        records: that the rows are of; others are not scored.
        rows: of edge and cloud.
        learned: what trained combiners say, the one that is compared with all others first; the best fixed mix takes
            its place where there is none.
        scheduled: the same combiner where it asks less often.
        beside: models by themselves.
        out: directory of what is known so far of these.
        force: begin anew where an earlier run was another.
        report: called with what is scored, how many records are, and of how many.

    Raises:
        DataError: the rows are of other records, or sketches are missing.
        SettingsError: two systems have one name.
        CogenesisError: a model can't be used.
    """
    known = {record.id: record for record in records}
    strange = [one.id for one in rows.records if one.id not in known]
    if strange:
        raise DataError(f"The log-probs are of other records: '{strange[0]}' is not among these. Score these first.")
    swept = sweeps(rows)
    alone, mixes = single_models(rows), fixed_mixes(rows, swept)
    main = learned[0] if learned else best_of(mixes)
    found = {one.system: measured(rows, one) for one in (*alone, *mixes, *learned)}
    scored = [known[one.id] for one in rows.records]
    tokens = {one.id: one.rows for one in rows.records}
    others: dict[str, Sequence[Measured | None]] = {}
    for one in beside:
        if one.name in found or one.name in others:
            raise SettingsError(f"Two systems are called '{one.name}'. Give the model beside another name.")
        path = out / f"{one.name}.jsonl"
        others[one.name] = _measured_alone(one, scored, tokens, path, force, report)
    single = best_of([one for one in alone if one.system in _WRITERS])
    return Likelihoods(
        tokens=rows.size,
        skipped=len(records) - len(scored),
        table=table({**found, **others}, main.system),
        sweeps=swept,
        calls=calls_of(rows, [*by_schedule(rows, main), *scheduled], main, single, alone[0]),
    )


def _measured_alone(
    beside: Beside,
    records: Sequence[CollabRecord],
    tokens: dict[str, int],
    journal: Path,
    force: bool,
    report: Callable[[str, int, int], None],
) -> list[Measured | None]:
    if beside.shown is Shown.SKETCH and not any(record.sketch for record in records):
        raise DataError(f"{beside.name} needs sketches, and no record has one. Use `cogenesis collab sketch` first.")

    def note(done: int, total: int) -> None:
        report(beside.name, done, total)

    return reference_nll(records, ReferencePlan(beside.model, beside.shown, tokens), journal, force=force, report=note)
