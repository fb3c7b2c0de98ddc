"""Finds the private units of a context: names, numbers, dates, addresses, rare words, and runs of words of its own.

The rule, in the order of the kinds:

- `email`, `handle` (web addresses and @handles), `phone`, `date` (weekdays and months too): where the context has one.
- `number`: two digits or more, however separated, and numbers in words that are written with a hyphen.
- `name`: every word of a profile line `Name:`; a word outside the list of common words that the context capitalises
  inside a sentence; two capitalised words in a row, and all in a row, as one; a word with capitals or digits inside
  ("TechTalk"). Only where it is capitalised: a common word that the context capitalises inside a sentence and never
  writes small, introduces as a name ("named Pixel"), or capitalises in a line `Location:`, `Company:` and the like
  ("Grace").
- `word`: any other word of four letters or more outside the list of common words.
- `sequence`: four words in a row within a line, parted at hyphens, with and without apostrophes, of which at least
  two are no function words.

What the instruction says itself, in any regular form, is public and no unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.privacy.folding import Kind, fold, squeeze, starts_inside
from edge_runtime.privacy.patterns import things
from edge_runtime.privacy.word_forms import VALUES, inflections, is_common, is_function_word, number_words, stems

SEQUENCE_WORDS = 4
"""How many words in a row make a sequence."""

_RUN_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W_]+")
_TAILS = frozenset(("s", "t", "d", "m", "ll", "re", "ve"))  # of possessives and contractions, parted off
_CONTENT_WORDS = 2  # of a sequence
_RARE_LETTERS = 4
_CALENDAR = frozenset(
    (
        "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "january", "february", "march",
        "april", "may", "june", "july", "august", "september", "october", "november", "december",
    )
)  # fmt: skip
_AMBIGUOUS = frozenset(("march", "may", "august"))  # words of their own where they are written small
_JOINED_WORDS = 6  # of the instruction that may together read as one word
_NAME_LINE = re.compile(r"\s*(?:\w+[ _])?name\s*:", re.IGNORECASE)
_PLACE_LINE = re.compile(r"\s*(?:location|address|city|hometown|employer|company)\s*:", re.IGNORECASE)
_INTRODUCED = re.compile(r"\b(?:nick)?named?\s+(?:is\s+)?([^\W\d_a-z]\w*)|\bcalled\s+([^\W\d_a-z]\w*)")
_TENS_AND_ONES = re.compile(r"\b([a-z]+)[-\u2010-\u2015 ]([a-z]+)\b", re.IGNORECASE)
_LABEL = re.compile(r"\s*[\w -]{1,40}:(?!//)")
_SENTENCE_END = re.compile(r"[.!?;:\n\"\u201c\u201d\u2018\u00ab\u00bb*#\u2022|]|(?<!\w)'")
_APOSTROPHES = "'\u2019\u02bc\uff07"
_INVISIBLE = "\u0300-\u036f\u00ad\u200b-\u200d\u2060\ufeff"
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{_INVISIBLE}])*(?:[{_APOSTROPHES}][^\W\d_]+)*")
_RUN_WORD_WHOLE = re.compile(rf"\d+(?:[.,:]\d+)*|[^\W_]+(?:[{_APOSTROPHES}][^\W\d_]+)*")
_SUFFIX = re.compile(rf"[{_APOSTROPHES}](?:s|t|d|m|ll|re|ve)?\Z", re.IGNORECASE)  # of possessives and contractions
_NUMBER = re.compile(r"\d+(?:[., :\u2019'\u00a0\u2009\u202f]\d{3}(?!\d))+(?:\.\d+)?|\d+(?:[.,:]\d+)*")


@dataclass(frozen=True, slots=True)
class PrivateUnit:
    """One thing that must not leave.

    Attributes:
        kind: "name", "number", "date", "email", "phone", "handle", "word" or "sequence".
        surface: as the context writes it where it first appears.
        key: its plain letters (see `edge_runtime.privacy.folding.squeeze`).
        forms: plain letters of every form in which it is recognised; `key` is one of them.
        capitalised: only where its first letter is a capital.
        start: letters of the form that may leave before the rest is held back: those of a sequence's first three words.
    """

    kind: str
    surface: str
    key: str
    forms: frozenset[str]
    capitalised: bool = False
    start: int = 0


def private_units(context: PrivateContext, instruction: PublicInstruction) -> tuple[PrivateUnit, ...]:
    """Private units of the context, without what the instruction says.

    Args:
        context: what only the device may know.
        instruction: what the cloud knows anyway.

    Returns:
        The units by first appearance, each key once a kind.
    """
    public = Public.of(instruction)
    lines = list(_lines(context))
    units: dict[tuple[str, str], PrivateUnit] = {}
    for unit in (*_things(lines, public), *_words(lines, public)):
        known = units.setdefault((unit.kind, unit.key), unit)
        if known.capitalised and not unit.capitalised:
            units[unit.kind, unit.key] = unit
    own = frozenset(form for unit in units.values() if not unit.capitalised for form in unit.forms)
    for unit in _sequences(lines, public, own):
        units.setdefault((unit.kind, unit.key), unit)
    return tuple(units.values())


@dataclass(frozen=True, slots=True)
class Public:
    """What the instruction says.

    Attributes:
        words: every form of its words and numbers.
        letters: all of its letters, squeezed.
    """

    words: frozenset[str]
    letters: str

    @classmethod
    def of(cls, instruction: PublicInstruction) -> Public:
        """Read an instruction."""
        words: set[str] = set()
        for part in _parts(instruction.text):
            words |= inflections(part.key)
        for unit in _numbers(instruction.text, cls(frozenset(), "")):
            words |= unit.forms
        for thing in things(instruction.text):
            words |= thing.forms
        said = [squeeze(match.group()) for match in _RUN_WORD.finditer(instruction.text)]
        # "a new" says "anew" as well, for those who look at letters alone.
        words |= {"".join(said[i : i + n]) for n in range(1, _JOINED_WORDS + 1) for i in range(len(said))}
        return cls(frozenset(words), squeeze(instruction.text))

    def has(self, word: str) -> bool:
        """Whether the instruction says this word in any form."""
        return bool(stems(word) & self.words)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the context.

    Attributes:
        text: without its label.
        inside: it starts within a sentence.
        titled: capitals mean nothing in it.
        placed: its capitalised words are names, of places or companies.
        named: its words are the user's names, in any case.
    """

    text: str
    inside: bool = False
    titled: bool = False
    placed: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """A word of a text; `capital`: it is capitalised, `inside`: it does not start a sentence."""

    surface: str
    key: str
    capital: bool
    inside: bool
    start: int
    end: int


def _lines(context: PrivateContext) -> Iterator[_Line]:
    for line in context.profile.splitlines():
        label = _LABEL.match(line)  # "Name:" is the form's word, not the user's, and what follows may be a name
        if label is None:
            yield _Line(line)
            continue
        named, placed = (form.match(line) is not None for form in (_NAME_LINE, _PLACE_LINE))
        yield _Line(line[label.end() :], inside=True, placed=placed or named, named=named)
    for item in context.history:
        for line in item.title.splitlines():
            yield _Line(line, titled=True)
        for line in item.text.splitlines():
            yield _Line(line)


def _things(lines: Iterable[_Line], public: Public) -> Iterator[PrivateUnit]:
    for line in lines:
        for thing in things(line.text):
            if thing.key not in public.letters:
                yield PrivateUnit(thing.kind, thing.surface, thing.key, thing.forms - public.words)


def _words(lines: Iterable[_Line], public: Public) -> Iterator[PrivateUnit]:
    lines = list(lines)
    # What is introduced as a name is one, whatever the context writes small elsewhere ("a dog named Melody").
    introduced = {squeeze(match[1] or match[2]) for line in lines for match in _INTRODUCED.finditer(line.text)}
    small = {part.key for line in lines for part in _parts(line.text) if not part.capital} - introduced
    for line in lines:
        parts = list(_parts(line.text, line.inside))
        for part in parts:
            if not part.key.isdecimal() and not public.has(part.key):
                unit = _word(part, line, small, public)
                if unit is not None:
                    yield unit
        yield from _compounds(line.text, public)
        yield from _numbers(line.text, public)
        if not line.titled:
            yield from _phrases(line, parts, public)


def _word(part: _Part, line: _Line, small: set[str], public: Public) -> PrivateUnit | None:
    key = part.key
    if len(key) < 2 or any(character.isdecimal() for character in key):
        return None
    if key in _CALENDAR and part.capital:
        return PrivateUnit("date", part.surface, key, frozenset({key, key + "s"}), capitalised=key in _AMBIGUOUS)
    if is_function_word(key) and not (line.named and part.capital):
        return None
    name = line.named or (part.capital and not line.titled and (part.inside or line.placed))
    short = len(key) == 2 and not part.surface.isupper()
    if (is_common(key) and not line.named) or is_function_word(key) or short:
        if not name or (key in small and not line.placed):
            return None
        return PrivateUnit("name", part.surface, key, frozenset({key, key + "s"}), capitalised=True)
    if name:
        forms = {
            key,
            key + ("es" if key.endswith(("s", "x", "z", "ch", "sh")) else "s"),
            *_transliterated(part.surface),
        }
        if key.endswith("s") and len(key) > 5 and not is_common(key[:-1]):
            forms.add(key[:-1])
        return PrivateUnit("name", part.surface, key, frozenset(forms - public.words))
    if len(key) < _RARE_LETTERS:
        return None
    forms = {form for form in inflections(key) if form == key or (len(form) >= 3 and not is_common(form))}
    return PrivateUnit("word", part.surface, key, frozenset((forms - public.words) | _transliterated(part.surface)))


def _compounds(text: str, public: Public) -> Iterator[PrivateUnit]:
    """Words with capitals or digits inside: "TechTalk", "B2B"."""
    for match in _WORD.finditer(text):
        surface = _SUFFIX.sub("", match.group())
        key = squeeze(surface)
        if len(_runs(surface)) > 1 and len(key) > 2 and not surface[0].isdecimal() and key not in public.letters:
            yield PrivateUnit("name", surface, key, frozenset({key, key + "s"}))


def _phrases(line: _Line, parts: list[_Part], public: Public) -> Iterator[PrivateUnit]:
    """Capitalised words in a row: "Salt Lake City"; its words may be common, the whole is not."""
    run: list[_Part] = []
    for part in [*parts, None]:
        joined = run and part is not None and line.text[run[-1].end : part.start].strip("'\u2019s -") == ""
        if part is not None and part.capital and not part.key.isdecimal() and (joined or not run):
            run.append(part)
            continue
        while run and (is_function_word(run[0].key) or not run[0].inside):
            run.pop(0)
        spans = [(0, len(run)), *((index, index + 2) for index in range(len(run) - 1))] if len(run) > 1 else []
        for first, last in spans:
            key = "".join(word.key for word in run[first:last])
            said = any(is_function_word(word.key) for word in run[first:last]) and last - first == 2
            known = all(public.has(word.key) for word in run[first:last])
            if key not in public.letters and not said and not known:
                surface = line.text[run[first].start : run[last - 1].end]
                yield PrivateUnit("name", surface, key, frozenset({key, key + "s"}))
        run = [part] if part is not None and part.capital and not part.key.isdecimal() else []


def _numbers(text: str, public: Public) -> Iterator[PrivateUnit]:
    for match in _NUMBER.finditer(text):
        key = squeeze(match.group())
        if len(key) > 1 and not (forms := _number_forms(key)) & public.words:
            yield PrivateUnit("number", match.group(), key, frozenset(forms))
    for match in _TENS_AND_ONES.finditer(text):
        tens, ones = (VALUES.get(word.casefold(), 0) for word in match.groups())
        number = str(tens + ones)
        if tens >= 20 and 0 < ones < 10 and not (forms := _number_forms(number)) & public.words:
            yield PrivateUnit("number", match.group(), squeeze(match.group()), frozenset(forms))


def _sequences(lines: Iterable[_Line], public: Public, own: frozenset[str]) -> Iterator[PrivateUnit]:
    for line in lines:
        for pattern in (_RUN_WORD, _RUN_WORD_WHOLE):
            words = [(squeeze(match.group()), match) for match in pattern.finditer(line.text)]
            for index in range(len(words) - SEQUENCE_WORDS + 1):
                keys = [key for key, _ in words[index : index + SEQUENCE_WORDS]]
                content = sum(not is_function_word(key) and key not in _TAILS for key in keys)
                letters = "".join(keys)
                # A run with a word that never leaves by itself can't leave either.
                if content < _CONTENT_WORDS or letters in public.letters or any(key in own for key in keys):
                    continue
                surface = line.text[words[index][1].start() : words[index + SEQUENCE_WORDS - 1][1].end()]
                start = len(letters) - len(keys[-1])
                yield PrivateUnit("sequence", surface, letters, frozenset({letters}), start=start)


def _number_forms(key: str) -> set[str]:
    forms = {key}
    number = int(key) if len(key) < 16 else 0
    if number and str(number) == key:
        forms |= number_words(number)
    if len(key) > 3:
        forms.add("".join(_ONE[int(digit)] for digit in key))
    return forms


_ONE = {value: word for word, value in VALUES.items() if value < 10}


def _transliterated(surface: str) -> set[str]:
    """Umlauts in two letters: Mueller."""
    plain = surface.casefold()
    if not any(letter in plain for letter in "äöüåø"):
        return set()
    return {squeeze(plain.translate({228: "ae", 246: "oe", 252: "ue", 229: "aa", 248: "oe"}))}


def _parts(text: str, inside: bool = False) -> Iterator[_Part]:
    """The words of a text: runs of letters or of digits, parted where a capital follows a small letter."""
    end = 0
    for match in _WORD.finditer(text):
        inside = inside and not _SENTENCE_END.search(text, end, match.start())
        end = match.end()
        surface = _SUFFIX.sub("", match.group())
        for start, stop in _runs(surface):
            key = squeeze(surface[start:stop])
            if key:
                capital = _capital(surface[start:stop])
                yield _Part(surface[start:stop], key, capital, inside, match.start() + start, match.start() + stop)
            inside = True


def _runs(word: str) -> list[tuple[int, int]]:
    cuts, before = [0], Kind.SEPARATOR
    for index, character in enumerate(word):
        kind = fold(character).kind
        if kind is Kind.IGNORED:
            continue
        if before is not Kind.SEPARATOR and kind is not Kind.SEPARATOR and starts_inside(before, kind):
            cuts.append(index)
        before = kind
    return list(zip(cuts, [*cuts[1:], len(word)], strict=True))


def _capital(word: str) -> bool:
    return next((kind is Kind.UPPER for kind in (fold(c).kind for c in word) if kind is not Kind.IGNORED), False)
