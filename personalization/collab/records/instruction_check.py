"""Finds what a public instruction gives away of its user's private context, by the rules of the guard."""

from __future__ import annotations

from edge_runtime.context import PublicInstruction
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import PrivateUnit, private_units
from personalization.collab.records.records import CollabRecord

_NOTHING_SAID = PublicInstruction("-")  # what an instruction says counts as public elsewhere
_NO_FACTS = ("sequence", "word")  # past tasks are worded alike, and rare words say what a task is about


def private_in_instruction(record: CollabRecord) -> tuple[PrivateUnit, ...]:
    """Names, numbers, dates and addresses of a record's profile and past texts that its instruction has.

    Args:
        record: without context it gives away nothing.

    Returns:
        Each unit once; see `edge_runtime.privacy.units` for what is one.
    """
    if record.context is None:
        return ()
    units = [unit for unit in private_units(record.context, _NOTHING_SAID) if unit.kind not in _NO_FACTS]
    found = {hit.unit for hit in Scanner(units).find(record.instruction.text)}
    return tuple(units[index] for index in sorted(found))
