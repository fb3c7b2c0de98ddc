"""Runs an evaluation plan on some records: likelihoods of the references, answers, and a judge's verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime.cloud import Cloud
from edge_runtime.fusion.sparse import RowFormat
from personalization.answering.checked_answers import Source
from personalization.collab.evaluation.answers import AnswerSettings, Models
from personalization.collab.evaluation.evaluate_answers import (
    Answers,
    Report,
    judge_answers,
    measure_answers,
    write_answers,
)
from personalization.collab.evaluation.evaluate_likelihood import LikelihoodPlan, measure_likelihood
from personalization.collab.evaluation.judge import Criterion
from personalization.collab.evaluation.systems import System
from personalization.collab.evaluation.tables import Evaluation, Judged
from personalization.collab.logprobs.file import read_logprobs
from personalization.collab.records.records import CollabRecord


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """The answers to write.

    Attributes:
        edge: the device's bundle.
        systems: systems that write besides the device alone.
        settings: how answers are written; if likelihoods are also measured, `rows` comes from the log-prob file.
        connect: opens a connection to the cloud; None if no system needs one.
        large: a bundle of the cloud's model, see `Models`.
        limit: maximum number of records to answer, from the first; None answers all.
    """

    edge: Path
    systems: tuple[System, ...]
    settings: AnswerSettings
    connect: Callable[[], AbstractContextManager[Cloud]] | None = None
    large: Path | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """The judge of the answers, and its criteria."""

    source: Source
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """The measurements to make, and the records.

    Attributes:
        name: name of the records in the report.
        records: records with context.
        out: directory for the progress.
        likelihood: plan for the likelihoods of the references; None skips them.
        answers: plan for the answers; None skips them.
        judge: plan for judging these answers; None skips it.
        force: whether to start over if an earlier run had other settings.
    """

    name: str
    records: tuple[CollabRecord, ...]
    out: Path
    likelihood: LikelihoodPlan | None = None
    answers: AnswerPlan | None = None
    judge: JudgePlan | None = None
    force: bool = False


def evaluate_records(plan: EvaluationPlan, report: Report) -> Evaluation:
    """Run a plan; an interrupted run resumes.

    Args:
        plan: the measurements to make.
        report: called with the name of the current step, the amount done, and the total.

    Raises:
        SettingsError: an earlier run had other settings and `force` is not set, or a system lacks a model.
        DataError: the log-probs can't be read, or belong to other records.
        CogenesisError: a model can't be used, or records could not be scored, answered or judged.
    """
    likelihood, form, answered, judged = None, None, None, {}
    if plan.likelihood is not None:
        rows = read_logprobs(plan.likelihood.rows)
        form = rows.about.rows
        likelihood = measure_likelihood(
            plan.records, rows, plan.likelihood, plan.out / "beside", force=plan.force, report=report
        )
    if plan.answers is not None:
        asked = plan.records[: plan.answers.limit]
        answers = _written(plan, plan.answers, asked, form, report)
        answered = measure_answers(asked, answers)
        if plan.judge is not None:
            judged = _judged(plan, plan.judge, asked, answers, report)
    users = len({record.user for record in plan.records})
    return Evaluation(plan.name, len(plan.records), users, likelihood, answered, judged)


def _written(
    plan: EvaluationPlan, answers: AnswerPlan, records: Sequence[CollabRecord], form: RowFormat | None, report: Report
) -> Answers:
    settings = answers.settings if form is None else replace(answers.settings, rows=form)
    with nullcontext() if answers.connect is None else answers.connect() as cloud:
        models = Models(answers.edge, cloud, answers.large)
        return write_answers(
            records, answers.systems, models, settings, plan.out / "answers", force=plan.force, report=report
        )


def _judged(
    plan: EvaluationPlan, judge: JudgePlan, records: Sequence[CollabRecord], answers: Answers, report: Report
) -> dict[str, Judged]:
    out = plan.out / "judged"
    return {
        str(one): judge_answers(records, answers, judge.source, one, out, force=plan.force, report=report)
        for one in dict.fromkeys(judge.criteria)
    }
