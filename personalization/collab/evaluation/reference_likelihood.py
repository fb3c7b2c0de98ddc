"""Measures a single model's likelihood of reference answers, with context, without it, or with a sketch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import ContextOverflowError
from personalization.collab.evaluation.fusion_likelihood import NLL
from personalization.collab.logprobs.model_spec import ModelSpec
from personalization.collab.logprobs.open_scorer import open_scorer
from personalization.collab.records.records import CollabRecord, records_digest
from personalization.collab.records.shown import Shown
from personalization.jobs.journal import Journal, run_remaining
from personalization.jobs.runners import LocalRunner
from personalization.measures.by_user import Measured, Sum


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The scoring model and its prompt.

    Attributes:
        model: the model.
        shown: the content of the prompt.
        tokens: tokens of each record's reference by the record's id, as in the log-prob file.
    """

    model: ModelSpec
    shown: Shown
    tokens: dict[str, int]


class ReferenceScorer:
    """Scores records with one model."""

    def __init__(self, plan: ReferencePlan) -> None:
        """Load the model.

        Raises:
            CogenesisError: the model can't be loaded.
        """
        self._plan = plan
        self._scorer = open_scorer(plan.model)

    def __call__(self, record: CollabRecord) -> float | None:
        """Return the nats of a record's reference; None if prompt and reference don't fit, or its sketch is missing."""
        if self._plan.shown is Shown.SKETCH and not record.sketch:
            return None
        answer = self._scorer.tokenizer.encode(record.reference)[: self._plan.tokens[record.id]]
        context = None if self._plan.shown is Shown.WITHOUT else record.device_context
        outline = record.sketch if self._plan.shown is Shown.SKETCH else None
        try:
            rows = self._scorer.score(record.instruction, context, answer, outline)
        except ContextOverflowError:
            return None
        return -float(rows[np.arange(len(answer)), answer].sum(dtype=np.float64))


def score_references(
    records: Sequence[CollabRecord],
    plan: ReferencePlan,
    journal: Path,
    *,
    force: bool = False,
    report: Callable[[int, int], None],
) -> list[Measured | None]:
    """Score records, except those that an earlier run has scored.

    Args:
        records: records, each in `plan.tokens`.
        plan: the model and its prompt.
        journal: file for the progress.
        force: whether to start over if an earlier run had other settings.
        report: called after each record with the number of finished records and the total.

    Returns:
        Nats and tokens per record; None if a record has no score.

    Raises:
        SettingsError: an earlier run had other settings and `force` is not set.
        PersonalizationError: records could not be scored.
    """
    run: dict[str, Any] = {
        "model": plan.model.identity,
        "shown": str(plan.shown),
        "tokens": [plan.tokens[record.id] for record in records],
        "threads": plan.model.threads,
        "records": records_digest(records),
    }
    notes = Journal(journal, run, force=force)
    run_remaining(partial(ReferenceScorer, plan), dict(enumerate(records)), LocalRunner(), notes, report)
    found: list[Measured | None] = []
    for number, record in enumerate(records):
        nats = notes.results[number]
        sums = {NLL: Sum(nats or 0.0, plan.tokens[record.id])}
        found.append(None if nats is None else Measured(record.user, sums))
    return found
