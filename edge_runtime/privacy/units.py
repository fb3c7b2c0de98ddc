"""Finds the private units of a context: names, numbers, dates, addresses, rare words and word sequences.

Each kind has a rule below; the tables at the end list the rules in order. In short:

- `email`, `handle` (web addresses and @handles), `phone`, `date` (also weekdays and months).
- `number`: two or more digits, however separated, and hyphenated numbers in words.
- `name`: every word of a profile line `Name:`; an uncommon word that the context capitalises inside a sentence;
  two capitalised words in a row, and the whole row, as one unit; a word with capitals or digits inside ("TechTalk").
  A common word is a name only where it is capitalised, and only in three cases. The context capitalises it inside a
  sentence and never writes it in lower case; introduces it as a name ("named Pixel"); or capitalises it in a line
  such as `Location:` or `Company:` ("Grace").
- `word`: any other word of four letters or more outside the list of common words.
- `sequence`: four words in a row within a line, split at hyphens, with and without apostrophes. At least two of them
  are not function words.

Anything that the instruction itself says, in any regular form, is public and not a unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.privacy.folding import squeeze
from edge_runtime.privacy.patterns import entities
from edge_runtime.privacy.reading import APOSTROPHES, Line, Word, lines_of, words_of, written_words
from edge_runtime.privacy.word_forms import VALUES, inflections, is_common, is_function_word, number_words, stems

SEQUENCE_WORDS = 4
"""Number of words in a sequence."""

_CONTENT_WORDS = 2  # minimum in a sequence
_RARE_LETTERS = 4
_CALENDAR = frozenset(
    (
        "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "january", "february", "march",
        "april", "may", "june", "july", "august", "september", "october", "november", "december",
    )
)  # fmt: skip
_AMBIGUOUS = frozenset(("march", "may", "august"))  # ordinary words in lower case
_TAILS = frozenset(("s", "t", "d", "m", "ll", "re", "ve"))  # split off from possessives and contractions
_JOINED_WORDS = 6  # maximum words of the instruction that may read as one word when joined
_DIGIT_WORDS = {value: word for word, value in VALUES.items() if value < 10}
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
_INTRODUCED = re.compile(r"\b(?:nick)?named?\s+(?:is\s+)?([^\W\d_a-z]\w*)|\bcalled\s+([^\W\d_a-z]\w*)")
_TENS_AND_ONES = re.compile(r"\b([a-z]+)[-\u2010-\u2015 ]([a-z]+)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[., :\u2019'\u00a0\u2009\u202f]\d{3}(?!\d))+(?:\.\d+)?|\d+(?:[.,:]\d+)*")
_RUN_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W_]+")
_RUN_WORD_WHOLE = re.compile(rf"\d+(?:[.,:]\d+)*|[^\W_]+(?:[{APOSTROPHES}][^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class PrivateUnit:
    """A piece of text that must not be sent.

    Attributes:
        kind: "name", "number", "date", "email", "phone", "handle", "word" or "sequence".
        surface: the text at its first appearance in the context.
        key: plain letters of the surface (see `edge_runtime.privacy.folding.squeeze`).
        forms: plain letters of every form in which the unit is recognised, including `key`.
        capitalised: whether it counts only where its first letter is a capital.
        start: letters of the form that may be sent before the rest is held back: a sequence's first three words.
    """

    kind: str
    surface: str
    key: str
    forms: frozenset[str]
    capitalised: bool = False
    start: int = 0


@dataclass(frozen=True, slots=True)
class Public:
    """The public words of the instruction.

    Attributes:
        words: every form of the instruction's words and numbers.
        letters: all of its letters, squeezed.
    """

    words: frozenset[str]
    letters: str

    @classmethod
    def of(cls, instruction: PublicInstruction) -> Public:
        """Read an instruction."""
        text = instruction.text
        words: set[str] = set()
        for word in words_of(text):
            words |= inflections(word.key)
        for number in _written_numbers(text):
            words |= number.forms
        for entity in entities(text):
            words |= entity.forms
        runs = [squeeze(match.group()) for match in _RUN_WORD.finditer(text)]
        # "a new" also makes "anew" public, because the scanner compares letters only.
        words |= {"".join(runs[i : i + n]) for n in range(1, _JOINED_WORDS + 1) for i in range(len(runs))}
        return cls(frozenset(words), squeeze(text))

    def has(self, word: str) -> bool:
        """Whether the instruction says this word in any form."""
        return bool(stems(word) & self.words)


def private_units(context: PrivateContext, instruction: PublicInstruction) -> tuple[PrivateUnit, ...]:
    """Find the private units of the context that the instruction does not make public.

    Args:
        context: the private context.
        instruction: the public instruction.

    Returns:
        The units in order of first appearance; each key appears once per kind.
    """
    lines = tuple(lines_of(context))
    known = _Known(Public.of(instruction), _written_small(lines))
    units: dict[tuple[str, str], PrivateUnit] = {}
    for unit in _by_rules(lines, known):
        first = units.setdefault((unit.kind, unit.key), unit)
        if first.capitalised and not unit.capitalised:
            units[unit.kind, unit.key] = unit
    own = frozenset(form for unit in units.values() if not unit.capitalised for form in unit.forms)
    for line in lines:
        for unit in _sequences(line, known.public, own):
            units.setdefault((unit.kind, unit.key), unit)
    return tuple(units.values())


@dataclass(frozen=True, slots=True)
class _Known:
    """What a rule knows besides the line it reads.

    Attributes:
        public: words of the instruction.
        small: words that the context somewhere writes in lower case, and does not introduce as names.
    """

    public: Public
    small: frozenset[str]


def _by_rules(lines: Sequence[Line], known: _Known) -> Iterator[PrivateUnit]:
    for rules in _RULES:
        for line in lines:
            for rule in rules:
                yield from rule(line, known)


def _written_small(lines: Sequence[Line]) -> frozenset[str]:
    # An introduced name ("a dog named Melody") stays a name even if the context writes the word in lower case
    # elsewhere.
    introduced = {squeeze(match[1] or match[2]) for line in lines for match in _INTRODUCED.finditer(line.text)}
    return frozenset(word.key for line in lines for word in line.words if not word.capital) - introduced


def _patterned(line: Line, known: _Known) -> Iterator[PrivateUnit]:
    """Find text that follows a pattern: addresses, handles, dates, telephone numbers.

    Example: "Write to ada@example.org soon" has the email "ada@example.org".
    """
    for found in entities(line.text):
        if found.key not in known.public.letters:
            yield PrivateUnit(found.kind, found.surface, found.key, found.forms - known.public.words)


def _single_words(line: Line, known: _Known) -> Iterator[PrivateUnit]:
    """Find single private words; the first of `_WORD_RULES` that makes a unit of a word wins.

    Example: "They visited Lindqvist" has the name "Lindqvist".
    """
    for word in line.words:
        if len(word.key) < 2 or any(letter.isdecimal() for letter in word.key) or known.public.has(word.key):
            continue
        for rule in _WORD_RULES:
            if unit := rule(word, line, known):
                yield unit
                break


def _calendar_day(word: Word, _line: Line, _known: _Known) -> PrivateUnit | None:
    """A weekday or month.

    Example: "We met on a Tuesday" has the date "Tuesday".
    """
    if word.key not in _CALENDAR or not word.capital:
        return None
    forms = frozenset({word.key, word.key + "s"})
    return PrivateUnit("date", word.surface, word.key, forms, capitalised=word.key in _AMBIGUOUS)


def _ordinary_name(word: Word, line: Line, known: _Known) -> PrivateUnit | None:
    """A common or short word in the position of a name; it is a name only where it is capitalised.

    Example: "They saw Rose yesterday" has the name "Rose".
    """
    if not _is_ordinary(word, line) or not _stands_as_name(word, line):
        return None
    if is_function_word(word.key) and not (line.named and word.capital):
        return None
    if word.key in known.small and not line.placed:
        return None
    return PrivateUnit("name", word.surface, word.key, frozenset({word.key, word.key + "s"}), capitalised=True)


def _unusual_name(word: Word, line: Line, known: _Known) -> PrivateUnit | None:
    """Any other word in the position of a name.

    Example: "They visited Lindqvist" has the name "Lindqvist".
    """
    key = word.key
    if _is_ordinary(word, line) or not _stands_as_name(word, line):
        return None
    plural = key + ("es" if key.endswith(("s", "x", "z", "ch", "sh")) else "s")
    forms = {key, plural, *_transliterated(word.surface)}
    if key.endswith("s") and len(key) > 5 and not is_common(key[:-1]):
        forms.add(key[:-1])
    return PrivateUnit("name", word.surface, key, frozenset(forms - known.public.words))


def _rare_word(word: Word, line: Line, known: _Known) -> PrivateUnit | None:
    """Any other uncommon word of four or more letters.

    Example: "She plays the accordion" has the word "accordion".
    """
    key = word.key
    if _is_ordinary(word, line) or _stands_as_name(word, line) or len(key) < _RARE_LETTERS:
        return None
    forms = {form for form in inflections(key) if form == key or (len(form) >= 3 and not is_common(form))}
    return PrivateUnit(
        "word", word.surface, key, frozenset((forms - known.public.words) | _transliterated(word.surface))
    )


def _compounds(line: Line, known: _Known) -> Iterator[PrivateUnit]:
    """Find words with capitals or digits inside.

    Example: "It sold at TechTalk" has the name "TechTalk".
    """
    for word in written_words(line.text):
        key = squeeze(word.surface)
        parted = len(word.parts) > 1 and len(key) > 2 and not word.surface[0].isdecimal()
        if parted and key not in known.public.letters:
            yield PrivateUnit("name", word.surface, key, frozenset({key, key + "s"}))


def _numbers(line: Line, known: _Known) -> Iterator[PrivateUnit]:
    """Find numbers of two or more digits, and numbers in words.

    Example: "It has twenty-two colonies" has the number "twenty-two".
    """
    for unit in _written_numbers(line.text):
        if not unit.forms & known.public.words:
            yield unit


def _phrases(line: Line, known: _Known) -> Iterator[PrivateUnit]:
    """Find rows of capitalised words: the whole row, and each pair. The words may be common; their combination is not.

    Example: "They met at River Park" has the name "River Park".
    """
    if line.titled:
        return
    for run in _capitalised_runs(line):
        pairs = [run[index : index + 2] for index in range(len(run) - 1)]
        for words in [run, *pairs] if pairs else []:
            key = "".join(word.key for word in words)
            bound = len(words) == 2 and any(is_function_word(word.key) for word in words)
            said = key in known.public.letters or all(known.public.has(word.key) for word in words)
            if not bound and not said:
                surface = line.text[words[0].start : words[-1].end]
                yield PrivateUnit("name", surface, key, frozenset({key, key + "s"}))


def _sequences(line: Line, public: Public, own: frozenset[str]) -> Iterator[PrivateUnit]:
    """Find four words in a row, at least two of them content words and none a unit by itself.

    Example: "She lost her job at the shop" has the sequence "lost her job at".
    """
    for pattern in (_RUN_WORD, _RUN_WORD_WHOLE):
        words = [(squeeze(match.group()), match) for match in pattern.finditer(line.text)]
        for index in range(len(words) - SEQUENCE_WORDS + 1):
            run = words[index : index + SEQUENCE_WORDS]
            keys = [key for key, _ in run]
            letters = "".join(keys)
            content = sum(not is_function_word(key) and key not in _TAILS for key in keys)
            # A sequence with a word that is never sent by itself can't be sent either.
            if content < _CONTENT_WORDS or letters in public.letters or any(key in own for key in keys):
                continue
            surface = line.text[run[0][1].start() : run[-1][1].end()]
            yield PrivateUnit("sequence", surface, letters, frozenset({letters}), start=len(letters) - len(keys[-1]))


# To add a kind of unit, add one function to one of these tables. Each pass reads all lines; of two units of one kind
# with the same letters, the first counts. Sequences come last, because they skip the units that other rules found.
_RULES: tuple[tuple[Callable[[Line, _Known], Iterator[PrivateUnit]], ...], ...] = (
    (_patterned,),
    (_single_words, _compounds, _numbers, _phrases),
)
_WORD_RULES: tuple[Callable[[Word, Line, _Known], PrivateUnit | None], ...] = (
    _calendar_day, _ordinary_name, _unusual_name, _rare_word,
)  # fmt: skip


def _is_ordinary(word: Word, line: Line) -> bool:
    """Whether a word in lower case reveals nothing about the user; the user's own names always reveal something."""
    short = len(word.key) == 2 and not word.surface.isupper()
    return short or is_function_word(word.key) or (not line.named and is_common(word.key))


def _stands_as_name(word: Word, line: Line) -> bool:
    """Whether a word is written like a name: capitalised inside a sentence, or in a line of names."""
    return line.named or (word.capital and not line.titled and (word.inside or line.placed))


def _capitalised_runs(line: Line) -> Iterator[list[Word]]:
    """Yield rows of capitalised words; none begins at a sentence's start or with a function word."""
    run: list[Word] = []
    for word in line.words:
        capitalised = word.capital and not word.key.isdecimal()
        if run and not (capitalised and line.text[run[-1].end : word.start].strip("'\u2019s -") == ""):
            yield _from_name(run)
            run = []
        if capitalised:
            run.append(word)
    yield _from_name(run)


def _from_name(run: Sequence[Word]) -> list[Word]:
    return list(dropwhile(lambda word: is_function_word(word.key) or not word.inside, run))


def _written_numbers(text: str) -> Iterator[PrivateUnit]:
    """Find every number of a text: two or more digits, and tens and ones in words."""
    for match in _NUMBER.finditer(text):
        key = squeeze(match.group())
        if len(key) > 1:
            yield PrivateUnit("number", match.group(), key, _number_forms(key))
    for match in _TENS_AND_ONES.finditer(text):
        tens, ones = (VALUES.get(word.casefold(), 0) for word in match.groups())
        if tens >= 20 and 0 < ones < 10:
            yield PrivateUnit("number", match.group(), squeeze(match.group()), _number_forms(str(tens + ones)))


def _number_forms(key: str) -> frozenset[str]:
    """Return the digits, the number in words, and the digits one by one in words."""
    forms = {key}
    number = int(key) if len(key) < 16 else 0
    if number and str(number) == key:
        forms |= number_words(number)
    if len(key) > 3:
        forms.add("".join(_DIGIT_WORDS[int(digit)] for digit in key))
    return frozenset(forms)


def _transliterated(surface: str) -> set[str]:
    """Return the surface with umlauts as two letters ("Mueller")."""
    plain = surface.casefold()
    spelled = plain.translate(_UMLAUTS)
    return {squeeze(spelled)} if spelled != plain else set()
