"""Measures the likelihood of reference answers: by model, by fusion, and by how often the cloud is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.fusion.combiner_file import read_combiner
from personalization.collab.evaluation.fusion_likelihood import (
    SENT,
    Likelihood,
    best_of,
    by_learned_schedule,
    by_schedule,
    fixed_mixes,
    learned,
    measured,
    single_models,
    sweeps,
)
from personalization.collab.evaluation.reference_likelihood import ReferencePlan, score_references
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
    """A model to measure alone: its name, its specification, and the content of its prompt."""

    name: str
    model: ModelSpec
    shown: Shown


@dataclass(frozen=True, slots=True)
class LikelihoodPlan:
    """The systems whose likelihoods are measured.

    Attributes:
        rows: file of the records' log-probs.
        combiner: directory of trained combiners; None measures only fixed mixes.
        beside: models to measure alone.
    """

    rows: Path
    combiner: Path | None = None
    beside: tuple[Beside, ...] = ()


def measure_likelihood(
    records: Sequence[CollabRecord],
    rows: LogProbs,
    plan: LikelihoodPlan,
    out: Path,
    *,
    force: bool = False,
    report: Callable[[str, int, int], None],
) -> Likelihoods:
    """Measure every system; the baseline is the trained combiner or, without one, the best fixed mix.

    Args:
        records: the records of the rows; others are not scored.
        rows: rows of edge and cloud from the plan's file.
        plan: the systems to measure.
        out: directory for the progress of models measured alone.
        force: whether to start over if an earlier run had other settings.
        report: called with the name of the step, the number of scored records, and the total.

    Raises:
        DataError: the rows belong to other records, or sketches are missing.
        SettingsError: two systems have the same name.
        CogenesisError: a model can't be used.
    """
    known = {record.id: record for record in records}
    strange = [one.id for one in rows.records if one.id not in known]
    if strange:
        raise DataError(f"The log-probs are of other records: '{strange[0]}' is not among these. Score these first.")
    swept = sweeps(rows)
    alone, mixes = single_models(rows), fixed_mixes(rows, swept)
    fused, scheduled = ([], []) if plan.combiner is None else _trained(rows, plan.combiner)
    main = fused[0] if fused else best_of(mixes)
    found = {one.system: measured(rows, one) for one in (*alone, *mixes, *fused)}
    scored = [known[one.id] for one in rows.records]
    tokens = {one.id: one.rows for one in rows.records}
    others: dict[str, Sequence[Measured | None]] = {}
    for one in plan.beside:
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


def _trained(rows: LogProbs, directory: Path) -> tuple[list[Likelihood], list[Likelihood]]:
    """Return the likelihoods of trained combiners, the shipped one first, and the same for the shipped schedule."""
    from personalization.collab.combiner.reference import reference_nll
    from personalization.collab.combiner.train import COMBINER_NAME, REFERENCE_NAME, read_reference

    combiner = read_combiner(directory / COMBINER_NAME)
    fused = [learned(rows, combiner)]
    if (directory / REFERENCE_NAME).exists():
        nll = reference_nll(rows, read_reference(directory / REFERENCE_NAME, rows.about.vocab_size))
        fused.append(Likelihood("CoGenesis' combiner", nll, 1.0))
    return fused, by_learned_schedule(rows, fused[0], combiner)


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

    return score_references(
        records, ReferencePlan(beside.model, beside.shown, tokens), journal, force=force, report=note
    )
