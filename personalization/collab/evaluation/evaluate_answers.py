"""Measures systems' answers, and lets a judge compare them with those of the device alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from personalization.answering.checked_answers import Source
from personalization.collab.evaluation.answers import AnswerSettings, CollabAnswer, Models, answer_records
from personalization.collab.evaluation.judge import SCORE, Criterion, Pair, Verdict, judge_pairs
from personalization.collab.evaluation.measures import AnswerMeasures
from personalization.collab.evaluation.systems import System, Writer, file_stem
from personalization.collab.evaluation.tables import Answered, Judged, table
from personalization.collab.records.records import CollabRecord
from personalization.measures.by_user import Measured, Sum

REFERENCE = "reference"
"""Name of the users' own texts among the systems."""

Answers = Mapping[str, Sequence[CollabAnswer]]
"""One answer per record, by system; the first system is the baseline."""

Report = Callable[[str, int, int], None]
"""Called with the name of the step, the amount done, and the total."""


def write_answers(
    records: Sequence[CollabRecord],
    systems: Sequence[System],
    models: Models,
    settings: AnswerSettings,
    out: Path,
    *,
    force: bool = False,
    report: Report,
) -> Answers:
    """Answer every record with every system, always including the baseline, which is the device alone.

    Raises:
        SettingsError: a system lacks a model, or an earlier run had other settings and `force` is not set.
        CogenesisError: records could not be answered.
    """
    ordered = {system.name: system for system in (System(Writer.EDGE, Writer.EDGE), *systems)}
    for system in ordered.values():
        models.of(system)  # report a missing model before hours of work, not after
    return {
        name: answer_records(
            records, system, models, settings, out, force=force, report=_reporting(report, f"{name} answered")
        )
        for name, system in ordered.items()
    }


def measure_answers(records: Sequence[CollabRecord], answers: Answers) -> Answered:
    """Measure answers against the references; the table also contains the references."""
    measures = AnswerMeasures(records)
    found: dict[str, Sequence[Measured]] = {name: measures.of_answers(own) for name, own in answers.items()}
    return Answered(len(records), table({**found, REFERENCE: measures.of_references()}, next(iter(answers))))


def judge_answers(
    records: Sequence[CollabRecord],
    answers: Answers,
    source: Source,
    criterion: Criterion,
    out: Path,
    *,
    force: bool = False,
    report: Report,
) -> Judged:
    """Let a judge compare every system's answers with those of the first system.

    Raises:
        SettingsError: an earlier run had other settings and `force` is not set.
        EndpointRefusedError: the judge rejects every request.
    """
    baseline, *systems = answers
    verdicts: dict[str, tuple[Verdict | None, ...]] = {}
    for name in systems:
        pairs = [
            Pair(record.instruction, record.device_context, ours.text, theirs.text)
            for record, ours, theirs in zip(records, answers[name], answers[baseline], strict=True)
        ]
        path = out / f"{criterion}.{file_stem(name)}.jsonl"
        note = _reporting(report, f"{name} judged")
        verdicts[name] = judge_pairs(source, pairs, criterion, path, force=force, report=note)
    scores = {name: [_ours(*both) for both in zip(records, found, strict=True)] for name, found in verdicts.items()}
    beside = [_baseline(record, [found[at] for found in verdicts.values()]) for at, record in enumerate(records)]
    unjudged = sum(verdict is None for found in verdicts.values() for verdict in found)
    return Judged(unjudged, table({baseline: beside, **scores}, baseline))


def _ours(record: CollabRecord, verdict: Verdict | None) -> Measured | None:
    return Measured(record.user, {SCORE: Sum(verdict.ours)}) if verdict else None


def _baseline(record: CollabRecord, verdicts: Sequence[Verdict | None]) -> Measured | None:
    """Return the first system's mean scores over its comparisons with all others."""
    theirs = [verdict.theirs for verdict in verdicts if verdict]
    return Measured(record.user, {SCORE: Sum(sum(theirs) / len(theirs))}) if theirs else None


def _reporting(report: Report, what: str) -> Callable[[int, int], None]:
    def note(done: int, total: int) -> None:
        report(what, done, total)

    return note
