"""How likely a model by itself finds reference answers, with context, without, or with a sketch in the prompt."""

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
    """Who scores, and behind which prompt.

    Attributes:
        model: who.
        shown: what the prompt holds.
        tokens: of each record's reference, by its id: what the log-prob file has of it.
    """

    model: ModelSpec
    shown: Shown
    tokens: dict[str, int]


class ReferenceScorer:
    """Scores records."""

    def __init__(self, plan: ReferencePlan) -> None:
        """Load the model.

        Raises:
            CogenesisError: it can't be loaded.
        """
        self._plan = plan
        self._scorer = open_scorer(plan.model)

    def __call__(self, record: CollabRecord) -> float | None:
        """Nats of a record's reference; None where prompt and reference don't fit, or its sketch is missing."""
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


def reference_nll(
    records: Sequence[CollabRecord],
    plan: ReferencePlan,
    journal: Path,
    *,
    force: bool = False,
    report: Callable[[int, int], None],
) -> list[Measured | None]:
    """Score records, those excepted that an earlier run has scored.

    Args:
        records: each in `plan.tokens`.
        plan: by whom, and how.
        journal: file of what is known so far.
        force: begin anew where an earlier run was another.
        report: called after each record with how many are done, and of how many.

    Returns:
        For each its nats and tokens, None where it has none.

    Raises:
        SettingsError: an earlier run was another, and `force` is not set.
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
