"""How likely one model finds reference answers behind a prompt: for systems that no log-prob file has rows of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import ContextOverflowError
from personalization.by_user import Measured, Sum
from personalization.collab_records import CollabRecord, records_digest
from personalization.engine import LocalEngine
from personalization.fusion_likelihood import NLL
from personalization.journal import Journal, run_remaining
from personalization.row_scorer import ModelSpec, open_scorer


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """Who scores, and what is in the prompt besides instruction and context.

    Attributes:
        model: who.
        sketch: whether the record's outline is in the prompt.
        tokens: of each record's reference, by its id: what the log-prob file has of it.
    """

    model: ModelSpec
    sketch: bool
    tokens: dict[str, int]


class ReferenceScorer:
    """Scores records, with the private context in the prompt."""

    def __init__(self, plan: ReferencePlan) -> None:
        """Load the model.

        Raises:
            CogenesisError: it can't be loaded.
        """
        self._plan = plan
        self._scorer = open_scorer(plan.model)

    def __call__(self, record: CollabRecord) -> float | None:
        """Nats of a record's reference; None where prompt and reference don't fit."""
        answer = self._scorer.tokenizer.encode(record.reference)[: self._plan.tokens[record.id]]
        outline = record.sketch if self._plan.sketch else None
        try:
            rows = self._scorer.score(record.instruction, record.device_context, answer, outline)
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
        records: each in `plan.tokens`; with a sketch where that is wanted.
        plan: by whom, and how.
        journal: file of what is known so far.
        force: begin anew where an earlier run was another.
        report: called after each record with how many are done, and of how many.

    Returns:
        For each its nats and tokens, None where it did not fit.

    Raises:
        SettingsError: an earlier run was another, and `force` is not set.
        PersonalizationError: records could not be scored.
    """
    run: dict[str, Any] = {
        "model": plan.model.identity,
        "sketch": plan.sketch,
        "tokens": [plan.tokens[record.id] for record in records],
        "threads": plan.model.threads,
        "records": records_digest(records),
    }
    notes = Journal(journal, run, force=force)
    run_remaining(partial(ReferenceScorer, plan), dict(enumerate(records)), LocalEngine(), notes, report)
    return [
        None
        if (nats := notes.results[number]) is None
        else Measured(record.user, {NLL: Sum(nats, plan.tokens[record.id])})
        for number, record in enumerate(records)
    ]
