"""Recognises private units in a text, character by character, and reports text that may still become one.

The scanner compares plain letters (`edge_runtime.privacy.folding`), so case, accents, width, punctuation and spaces
between letters make no difference. A form is recognised

- from the start of a word to the end of one, whatever separates its letters ("Lind-qvist", "L i n d q v i s t");
- as one of several adjoining forms ("adalindqvist");
- anywhere in a word, if it has at least five letters or six digits ("mrlindqvistson").

Words start and end at separators, where a capital follows a lower-case letter, and between letters and digits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from edge_runtime.privacy.folding import Folded, Kind, fold, starts_inside
from edge_runtime.privacy.units import PrivateUnit
from edge_runtime.privacy.word_forms import listed

_INSIDE_LETTERS = 5
_INSIDE_DIGITS = 6
_FREE = 2
"""Letters of a form inside a word that may be sent before the rest is held back."""

_NOWHERE = 1 << 60


class Hit(NamedTuple):
    """A private unit in the text.

    Attributes:
        start: position of its first character.
        hold: position of the first character that was held back for it; equals `start` for whole words.
        end: position after its last character.
        unit: index of the unit.
        form: plain letters of the recognised form.
        inside: whether it is part of a longer word.
    """

    start: int
    hold: int
    end: int
    unit: int
    form: str
    inside: bool


class _Candidate(NamedTuple):
    """Letters that may become a private unit; `hold` is _NOWHERE while they may still be sent."""

    table: int
    letters: str
    start: int
    hold: int
    inside: bool = False  # whether it starts within a word
    crossed: bool = False  # whether it contains separators


class Scan(NamedTuple):
    """The scanner's state; immutable, so the caller can return to it."""

    before: Kind = Kind.SEPARATOR
    candidates: tuple[_Candidate, ...] = ()

    @property
    def hold(self) -> int:
        """Position of the first character that must not be sent yet; beyond any text if all may be sent."""
        return min((candidate.hold for candidate in self.candidates), default=_NOWHERE)


class _Table:
    """Forms, indexed for lookup letter by letter: by prefix and as a whole."""

    def __init__(self, forms: dict[str, int], free: int) -> None:
        self.forms = forms
        self.free = free
        self._sorted = sorted(forms)
        self._begins: dict[str, bool] = {}

    def begins(self, letters: str) -> bool:
        known = self._begins.get(letters)
        if known is None:
            index = bisect_left(self._sorted, letters)
            known = index < len(self._sorted) and self._sorted[index].startswith(letters)
            self._begins[letters] = known
        return known


_WORDS, _CAPITALISED, _INSIDE, _SEQUENCES = range(4)


class Scanner:
    """Recognises the forms of some units. The scanner itself never changes: `step` returns the next `Scan`."""

    def __init__(self, units: Sequence[PrivateUnit], public: str = "") -> None:
        """Prepare the forms.

        Args:
            units: units to recognise.
            public: plain letters of the instruction. Forms that are part of it or of a common word ("heart" in
                "sweetheart") are recognised only as whole words.
        """
        harmless = f"{_common()} {public}"
        words: dict[str, int] = {}
        capitalised: dict[str, int] = {}
        inside: dict[str, int] = {}
        sequences: dict[str, int] = {}
        self._runs: set[str] = set()  # the first words of sequences
        for index, unit in enumerate(units):
            for form in unit.forms:
                if unit.kind == "sequence":
                    sequences.setdefault(form, index)
                    self._runs.add(form[: unit.start])
                elif unit.capitalised:
                    capitalised.setdefault(form, index)
                elif _fits_inside(form) and form not in harmless:
                    inside.setdefault(form, index)
                    if unit.kind != "word":
                        words.setdefault(form, index)
                else:
                    words.setdefault(form, index)
        self._tables = (
            _Table(words, 0), _Table({**capitalised, **words}, 0), _Table(inside, _FREE), _Table(sequences, _NOWHERE),
        )  # fmt: skip

    def step(self, scan: Scan, character: str, at: int) -> tuple[Scan, Hit | None]:
        """Read the character at position `at`, unless a unit ends before it.

        Returns:
            The next state and None; or the unchanged state and, of the units that end here, the one held back first.
        """
        after, hits = self.read(scan, character, at)
        if not hits:
            return after, None
        return scan, min(hits, key=lambda hit: hit.hold)

    def read(self, scan: Scan, character: str, at: int) -> tuple[Scan, tuple[Hit, ...]]:
        """Read the character at position `at`.

        Returns:
            The next state, and every unit that ends before the character.
        """
        folded = fold(character)
        if folded.kind is Kind.IGNORED:
            return scan, ()
        if folded.kind is Kind.SEPARATOR:
            if scan.before is Kind.SEPARATOR:
                return scan, ()
            return self._separate(scan), self._ended(scan, at, True)
        parted = scan.before is not Kind.SEPARATOR and starts_inside(scan.before, folded.kind)
        hits = self._ended(scan, at, parted)
        return Scan(folded.kind, tuple(self._grow(scan, folded, at, parted))), hits

    def find(self, text: str) -> Iterator[Hit]:
        """Yield every complete unit of a text, ordered by its end; units may overlap."""
        scan = Scan()
        for at, character in enumerate(f"{text}\n"):
            scan, hits = self.read(scan, character, at)
            yield from hits

    def _separate(self, scan: Scan) -> Scan:
        across = tuple(
            candidate if candidate.crossed else candidate._replace(crossed=True)
            for candidate in scan.candidates
            if not candidate.inside
        )
        return Scan(Kind.SEPARATOR, across)

    def _ended(self, scan: Scan, at: int, parted: bool) -> tuple[Hit, ...]:
        """Return the units that end before position `at`; `parted`: whether a word ends there."""
        hits: list[Hit] = []
        if scan.before is not Kind.SEPARATOR:
            for table, letters, start, hold, inside, crossed in scan.candidates:
                if not parted and (table < _INSIDE or crossed):
                    continue
                unit = self._tables[table].forms.get(letters)
                if unit is not None:
                    hits.append(Hit(start, hold, at, unit, letters, inside or not parted))
        return tuple(hits)

    def _grow(self, scan: Scan, folded: Folded, at: int, parted: bool) -> Iterable[_Candidate]:
        grown: dict[tuple[int, str, int], _Candidate] = {}
        for letter_index, letter in enumerate(folded.letters):
            previous = scan.candidates if not letter_index else tuple(grown.values())
            grown = {}
            for candidate in previous:
                table, letters, start, hold, _, _ = candidate
                for next_letters in (letters + letter, letter) if self._chains(table, letters) else (letters + letter,):
                    if not self._tables[table].begins(next_letters):
                        continue
                    if hold == _NOWHERE and self._holds(table, next_letters):
                        hold = at
                    grown.setdefault((table, next_letters, start), candidate._replace(letters=next_letters, hold=hold))
            starts = not letter_index and (parted or scan.before is Kind.SEPARATOR)
            for table in self._opened(starts, folded.kind is Kind.UPPER):
                if self._tables[table].begins(letter):
                    hold = at if self._holds(table, letter) else _NOWHERE
                    grown.setdefault((table, letter, at), _Candidate(table, letter, at, hold, not starts))
        return grown.values()

    def _opened(self, starts: bool, capital: bool) -> tuple[int, ...]:
        if not starts:
            return (_INSIDE,)
        return (_CAPITALISED if capital else _WORDS, _INSIDE, _SEQUENCES)

    def _chains(self, table: int, letters: str) -> bool:
        return table < _INSIDE and letters in self._tables[table].forms

    def _holds(self, table: int, letters: str) -> bool:
        if table == _SEQUENCES:
            return letters[:-1] in self._runs
        return len(letters) > self._tables[table].free


@cache
def _common() -> str:
    return " ".join(sorted(listed("common_words")))


def _fits_inside(form: str) -> bool:
    return len(form) >= (_INSIDE_DIGITS if form.isdecimal() else _INSIDE_LETTERS)
