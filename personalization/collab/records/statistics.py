"""Counts what a file of records holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from personalization.collab.records.instruction_check import private_in_instruction
from personalization.collab.records.records import CollabRecord


def statistics(records: Sequence[CollabRecord], report: Callable[[int, int], None]) -> dict[str, Any]:
    """Count.

    Args:
        records: at least one.
        report: called with records done and records in all: to look for private units takes a while.

    Returns:
        `records`, `users`, `with_context`, `with_sketch`; `words`: by part of a record (in `context` those of profile
        and past texts together) the `mean`, `median` and `most` of those that have one; `past_texts` and
        `records_per_user` likewise; `private_in_instruction`: how many `records` have something private in their
        public instruction, which (`ids`), and how many units `by_kind`.
    """
    words = {
        "instruction": [_words(record.instruction.text) for record in records],
        "task": [_words(record.task) for record in records],
        "context": [_context_words(record) for record in records if record.context],
        "reference": [_words(record.reference) for record in records],
        "sketch": [_words(record.sketch) for record in records if record.sketch],
    }
    per_user = Counter(record.user for record in records)
    return {
        "records": len(records),
        "users": len(per_user),
        "with_context": len(words["context"]),
        "with_sketch": len(words["sketch"]),
        "words": {part: _summary(counts) for part, counts in words.items() if counts},
        "past_texts": _summary([len(record.context.history) for record in records if record.context] or [0]),
        "records_per_user": _summary(list(per_user.values())),
        "private_in_instruction": private_instructions(records, report),
    }


def private_instructions(records: Sequence[CollabRecord], report: Callable[[int, int], None]) -> dict[str, Any]:
    """What public instructions give away; see `statistics`."""
    kinds: Counter[str] = Counter()
    ids = []
    for done, record in enumerate(records, start=1):
        units = private_in_instruction(record)
        kinds.update(unit.kind for unit in units)
        ids += [record.id] * bool(units)
        report(done, len(records))
    return {"records": len(ids), "ids": ids, "by_kind": dict(sorted(kinds.items()))}


def _words(text: str) -> int:
    return len(text.split())


def _context_words(record: CollabRecord) -> int:
    assert record.context is not None
    return _words(record.context.profile) + sum(_words(item.text) for item in record.context.history)


def _summary(counts: Sequence[int]) -> dict[str, float]:
    return {"mean": float(np.mean(counts)), "median": float(np.median(counts)), "most": float(max(counts))}
