"""An auditor of what left the device that shares nothing with the guard: its own facts, word list and matching."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_runtime import PublicInstruction
from edge_runtime.privacy.ledger import LedgerEntry
from tests.support.private_facts import (
    Text,
    Unit,
    Word,
    plurals,
    same,
    spelled_numbers,
    stems,
    written_dates,
    written_numbers,
)

SQUEEZED_LENGTH = 5
CONTEXT_LENGTH = 120  # characters before a message that it is read with


@dataclass(frozen=True)
class Leak:
    """A private fact in a text that left."""

    unit: Unit
    match: str
    around: str

    def __str__(self) -> str:
        return f"{self.unit} ({self.match}): {self.around}"


@dataclass
class Auditor:
    """Looks for one record's private facts in texts that left."""

    units: Sequence[Unit]
    _by_word: dict[str, list[Unit]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for unit in self.units:
            for form in plurals(unit.words[0]) | stems(unit.words[0]):
                self._by_word[form].append(unit)

    def read(self, text: str) -> list[Leak]:
        """The private facts in a text."""
        read = Text.read(text)
        found = [*self._in_words(read), *self._squeezed(read), *self._joined(read), *self._in_numbers(read)]
        return list({leak.unit: leak for leak in reversed(found)}.values())

    def _in_words(self, text: Text) -> Iterable[Leak]:
        for index, word in enumerate(text.words):
            for unit in self._by_word.get(word.text, ()):
                if unit.kind in ("number", "date"):
                    continue
                here = text.words[index : index + len(unit.words)]
                if len(here) < len(unit.words) or not all(map(same, unit.words, (w.text for w in here))):
                    continue
                # An ordinary word that is someone's name is that name only where it is written as one.
                if not unit.capital or all(w.capital and not w.initial for w in here):
                    yield Leak(unit, "words", text.around(word.start, here[-1].end))

    def _squeezed(self, text: Text) -> Iterable[Leak]:
        letters, starts, ends, origins = text.squeezed
        for unit in self.units:
            if unit.kind in ("number", "date", "phrase") or unit.capital or len(unit.squeezed) < SQUEEZED_LENGTH:
                continue
            at = letters.find(unit.squeezed)
            while at >= 0:
                end = at + len(unit.squeezed)
                rest = letters[end : ends[bisect_left(ends, end)]]
                if _in(starts, at) and unit.squeezed + rest in plurals(unit.squeezed):
                    yield Leak(unit, "squeezed", text.around(origins[at], origins[end - 1] + 1))
                at = letters.find(unit.squeezed, at + 1)

    def _joined(self, text: Text) -> Iterable[Leak]:
        """Several private words written as one, and words spelled letter by letter."""
        whole = {unit.words[0]: unit for unit in self.units if len(unit.words) == 1 and unit.words[0].isalpha()}
        singles = ""
        for word in (*text.words, Word("", False, True, 0, 0)):
            if len(word.text) == 1:
                singles += word.text
                continue
            for written in (word.text, singles):
                parts = _split(written, whole.keys()) if len(written) > 2 else ()
                if len(parts) > 1 or (written == singles and parts):
                    for part in parts:
                        yield Leak(whole[part], "joined", text.around(word.start, word.end))
            singles = ""

    def _in_numbers(self, text: Text) -> Iterable[Leak]:
        numbers = {unit.words[0]: unit for unit in self.units if unit.kind == "number"}
        dates = {unit.words: unit for unit in self.units if unit.kind == "date"}
        for number, start, end in written_numbers(text.plain):
            if number in numbers:
                yield Leak(numbers[number], "number", text.around(start, end))
        for value, start, end in spelled_numbers(text.words):
            if str(value) in numbers:
                yield Leak(numbers[str(value)], "number in words", text.around(start, end))
        for date, start, end in written_dates(text):
            if date in dates:
                yield Leak(dates[date], "date", text.around(start, end))
        for match in re.finditer(r"\d[\d\s().+\-/,:]{3,}\d", text.plain):
            digits = re.sub(r"\D", "", match[0])
            for unit in self.units:
                wanted = re.sub(r"\D", "", unit.words[0]) if unit.kind in ("number", "phone") else ""
                if len(wanted) >= SQUEEZED_LENGTH and wanted in digits:
                    yield Leak(unit, "digits", text.around(match.start(), match.end()))

    def ledger(
        self, entries: Iterable[LedgerEntry], instruction: PublicInstruction, decode: Callable[[Sequence[int]], str]
    ) -> list[Leak]:
        """The private facts in all that left, whether it was taken back later or not."""
        leaks: dict[Unit, Leak] = {}
        for text in texts_that_left(entries, instruction, decode):
            for leak in self.read(text):
                leaks.setdefault(leak.unit, leak)
        return list(leaks.values())


def _in(ascending: Sequence[int], value: int) -> bool:
    index = bisect_left(ascending, value)
    return index < len(ascending) and ascending[index] == value


def _split(word: str, parts: Iterable[str]) -> tuple[str, ...]:
    """The word as a row of these parts; () if it is none."""
    known = set(parts)
    best: list[tuple[str, ...] | None] = [(), *[None] * len(word)]
    for end in range(1, len(word) + 1):
        for start in range(end):
            before = best[start]
            if before is not None and word[start:end] in known and best[end] is None:
                best[end] = (*before, word[start:end])
    return best[-1] or ()


def texts_that_left(
    entries: Iterable[LedgerEntry], instruction: PublicInstruction, decode: Callable[[Sequence[int]], str]
) -> list[str]:
    """All texts that left but the public instruction, the last view of the cloud last.

    Whole are the views that the cloud held last or before some of it was taken back. For every message there is the
    end of the view that it made, from some words before the message on: the words of a view, read as it grew.
    """
    texts: dict[str, None] = {}
    view: list[int] = []
    for entry in entries:
        if entry.direction != "up":
            continue
        content: dict[str, Any] = dict(entry.content)
        if entry.kind in ("open", "sketch", "answer"):
            assert content.pop("instruction") == instruction.text
            fingerprint = content.pop("tokenizer_fingerprint", "")
            assert re.fullmatch(r"[0-9a-f]{64}|", fingerprint)
            content.pop("resume", None)  # a name that the cloud gave
            content.pop("rows", None)  # how rows are cut: settings
        if entry.kind == "verify":
            keep, tokens = content.pop("keep"), list(content.pop("tokens"))
            content.pop("rows")
            said = content.pop("text")
            assert said == (decode(tokens) if tokens else "")
            assert keep <= len(view), "keeps more than left"
            if keep < len(view):
                texts[decode(view)] = None
            view = [*view[:keep], *tokens]
            whole = decode(view) if view else ""
            begin = whole.rfind(" ", 0, max(0, len(whole) - len(said) - CONTEXT_LENGTH)) + 1
            texts[whole[begin:]] = None
        if any(content.values()):
            texts[json.dumps(content, ensure_ascii=False)] = None
    if view:
        texts.pop(decode(view), None)
        texts[decode(view)] = None
    return [text for text in texts if text.strip()]
