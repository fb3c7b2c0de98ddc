"""Counts how many private facts of a reference answer another answer also contains."""

from __future__ import annotations

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import Public, private_units

_WORDING = "sequence"  # word sequences show wording, not facts


class PrivateFacts:
    """The private units of a context that a reference answer contains; see `edge_runtime.privacy.units`."""

    def __init__(self, context: PrivateContext, instruction: PublicInstruction, reference: str) -> None:
        units = [unit for unit in private_units(context, instruction) if unit.kind != _WORDING]
        self._scanner = Scanner(units, Public.of(instruction).letters)
        self._wanted = self._units(reference)

    def __len__(self) -> int:
        return len(self._wanted)

    def told(self, answer: str) -> int:
        """Count the facts in an answer, in any form that the guard would recognise."""
        return len(self._wanted & self._units(answer))

    def _units(self, text: str) -> set[int]:
        return {hit.unit for hit in self._scanner.find(text)}
