"""Computes statistics of a file of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from personalization.collab.records.instruction_check import private_in_instruction
from personalization.collab.records.records import CollabRecord


def statistics(records: Sequence[CollabRecord], report: Callable[[int, int], None]) -> dict[str, Any]:
    """Compute the statistics.

    Args:
        records: at least one.
        report: called with the number of finished records and of all records; the search for private units takes a
            while.

    Returns:
        `records`, `users`, `with_context` and `with_sketch` are counts. `words` has, for each part of a record, the
        `mean`, `median` and `most` over the records that have it; `context` is profile and past texts together.
        `past_texts` and `records_per_user` have the same form. `private_in_instruction` says how many `records` reveal
        private context in their public instruction, which ones (`ids`), and how many units `by_kind`.
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
    """Count what public instructions reveal; see `statistics`."""
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
