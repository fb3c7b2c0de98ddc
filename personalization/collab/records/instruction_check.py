"""Finds private context that a public instruction reveals, by the rules of the guard."""

from __future__ import annotations

from edge_runtime.context import PublicInstruction
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import PrivateUnit, private_units
from personalization.collab.records.records import CollabRecord

_NOTHING_SAID = PublicInstruction("-")  # an empty stand-in: the guard treats an instruction's own words as public
_NO_FACTS = ("sequence", "word")  # past tasks have similar wording, and rare words describe the task


def private_in_instruction(record: CollabRecord) -> tuple[PrivateUnit, ...]:
    """Find names, numbers, dates and addresses of a record's profile and past texts in its instruction.

    Args:
        record: the record; without context it reveals nothing.

    Returns:
        Each unit once; `edge_runtime.privacy.units` defines units.
    """
    if record.context is None:
        return ()
    units = [unit for unit in private_units(record.context, _NOTHING_SAID) if unit.kind not in _NO_FACTS]
    found = {hit.unit for hit in Scanner(units).find(record.instruction.text)}
    return tuple(units[index] for index in sorted(found))
