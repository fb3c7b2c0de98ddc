"""What is private in a record, told without the guard's code or lists: the auditor's own idea of a private fact.

It is told what is private only by the record: the labelled lines of the profile and the past texts, minus what the
record's public instruction says. What is ordinary English it learns from what strangers wrote: the published
instructions and answers of other people, and their past texts.
"""

# ruff: noqa: RUF001 -- letters of other scripts are what this is about

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from edge_runtime import PrivateContext, PublicInstruction

# Letters of other scripts that look like Latin ones.
LOOKALIKES = str.maketrans(
    "АВЕЅZІЈКМНОРСТУХаеорсухіјѕԁһԛԝкмтнвΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχτɑɡıⅼ",
    "ABESZIJKMHOPCTYXaeopcyxijsdhqwkmtHBABEZHIKMNOPTYXaikvopuxtagil",
)
MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
NUMBER_WORDS = {word: value for value, word in enumerate((ONES + " seventeen eighteen nineteen").split())}
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS |= {word: 20 + 10 * index for index, word in enumerate(TENS)}
ORDINALS = {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
ORDINALS |= {f"{word}th": value for word, value in NUMBER_WORDS.items() if value and word[-1] != "y"}
ORDINALS |= {f"{word[:-1]}ieth": value for word, value in NUMBER_WORDS.items() if word[-1] == "y"}

# A day of the week is nobody's secret; a date is, see `written_dates`.
CALENDAR = {*MONTHS, "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "am", "pm"}
NAMED = {"named", "called", "nicknamed"}

EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PHONE = re.compile(r"\+?\d[\d\s().\-/]{5,}\d")
NUMBER = re.compile(r"\d+(?:[.,:/\-]\d+)*")
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE_ENDS = frozenset(".!?;:\n\"“”'‘’()[]*#•-–—|>")
PHRASE_LENGTH = 4


@dataclass(frozen=True)
class Unit:
    """One private fact: its kind, its words as folded, and whether it is only a secret where it is capitalised."""

    kind: str
    words: tuple[str, ...]
    capital: bool = False

    @cached_property
    def squeezed(self) -> str:
        return "".join(self.words)

    def __str__(self) -> str:
        return f"{self.kind}: {' '.join(self.words)}"


@dataclass(frozen=True)
class Word:
    """A word of a text: folded, and how it stood there."""

    text: str
    capital: bool
    initial: bool
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """A text taken apart: without marks and invisible characters, look-alikes as Latin letters, compatibility forms."""

    plain: str
    words: tuple[Word, ...]

    @classmethod
    def read(cls, text: str) -> Text:
        plain = text if text.isascii() else _latin(text)
        words = []
        end = 0
        for match in WORD.finditer(plain):
            between = plain[end : match.start()]
            initial = not end or not SENTENCE_ENDS.isdisjoint(between)
            end = match.end()
            bare = re.sub(r"['’](?:s|m|d|t|ll|ve|re)?$", "", match[0].casefold())
            folded = re.sub(r"['’]", "", bare)
            words.append(Word(folded, match[0][0].isupper(), initial, match.start(), end))
        return cls(plain, tuple(words))

    def around(self, start: int, end: int) -> str:
        return self.plain[max(0, start - 40) : end + 40].replace("\n", " / ")

    @cached_property
    def positions(self) -> Mapping[str, list[int]]:
        found = defaultdict(list)
        for index, word in enumerate(self.words):
            found[word.text].append(index)
        return found

    @cached_property
    def squeezed(self) -> tuple[str, list[int], list[int], list[int]]:
        """All letters and digits in a row, where pieces of words start and end in it, and where each was written."""
        letters, starts, ends, origins = [], [], [], []
        before = " "
        for index, character in enumerate(self.plain):
            if character.isalnum():
                piece_starts = (
                    not before.isalnum()
                    or (character.isupper() and not before.isupper())
                    or character.isdigit() != before.isdigit()
                )
                if piece_starts:
                    starts.append(len(letters))
                    ends.append(len(letters))
                folded = character.casefold()
                letters.extend(folded)
                origins.extend([index] * len(folded))
            before = character
        return "".join(letters), starts, [*ends, len(letters)], origins


def _latin(text: str) -> str:
    return "".join(
        character
        for character in unicodedata.normalize("NFKD", text).translate(LOOKALIKES)
        if unicodedata.category(character) not in ("Mn", "Me", "Cf")
    )


class Strangers:
    """What other people write: which words and word sequences are nobody's secret."""

    def __init__(
        self,
        texts: Iterable[tuple[str, str]] = (),
        public: Iterable[tuple[str, str]] = (),
        frequent: Container[str] = (),
    ) -> None:
        """Learn from texts.

        Args:
            texts: each with the person who wrote it.
            public: those people's public instructions.
            frequent: small-letter words so frequent that a tokenizer has a token for each.
        """
        self._frequent = frequent
        self._lower: dict[str, set[str]] = defaultdict(set)
        self._initial: dict[str, set[str]] = defaultdict(set)
        self._inside: dict[str, set[str]] = defaultdict(set)
        self._public: dict[str, set[str]] = defaultdict(set)
        self._runs: dict[tuple[str, ...], str] = {}
        for person, text in texts:
            words = Text.read(text).words
            for word in words:
                kind = self._lower if not word.capital else self._initial if word.initial else self._inside
                kind[word.text].add(person)
            for size in (2, PHRASE_LENGTH):
                for start in range(len(words) - size + 1):
                    run = tuple(word.text for word in words[start : start + size])
                    if self._runs.setdefault(run, person) != person:
                        self._runs[run] = "many"
        for person, text in public:
            for word in Text.read(text).words:
                self._public[word.text].add(person)
        self.function_words = {
            word for word, _ in Counter({w: len(p) for w, p in self._lower.items()}).most_common(500)
        }

    @classmethod
    def of(cls, data: Path, frequent: Container[str] = ()) -> Strangers:
        """Read the published CoGenesis records."""
        texts, public = [], []
        for name in ("ctx_train_wo.json", "context_aware_dev.json"):
            for record in json.loads((data / name).read_text(encoding="utf-8")):
                person = person_of(record["tid"])
                instruction, answer = (turn["value"] for turn in record["conversations"])
                texts += [(person, instruction), (person, answer)]
                public.append((person, instruction))
                for item in record.get("profile", ()):
                    texts += [(person, item["title"]), (person, item["text"])]
        return cls(texts, public, frequent)

    def say(self, word: str, person: str) -> bool:
        """Whether it is an ordinary word, or one that strangers name in public by the dozen."""
        forms = stems(word) | plurals(word)
        return word in CALENDAR or any(form in self._frequent or self.write(form, person) for form in forms)

    def run(self, words: Sequence[str], person: str) -> bool:
        """Whether a stranger wrote this sequence."""
        return self._runs.get(tuple(words), person) != person

    def write(self, word: str, person: str) -> bool:
        """Whether strangers write it as an ordinary word."""
        lower, initial, inside, public = (
            len(known.get(word, set()) - {person}) for known in (self._lower, self._initial, self._inside, self._public)
        )
        # A word like "Furthermore" is seldom written small, but hardly ever capitalised inside a sentence either.
        return lower >= 2 or (initial >= 3 and inside * 4 <= initial) or public >= 12


def person_of(tid: str) -> str:
    """Whose record it is: several records share a person."""
    return tid.rsplit("_", 1)[0]


def stems(word: str) -> set[str]:
    """A word and what it may be an inflection of; generous, since it only says what is ordinary or known."""
    found = {word}
    for ending in ("s", "es", "ed", "d", "ing", "ly", "er", "est", "r"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word[: -len(ending)]
            found |= {stem, stem + "e"}
            if stem[-1] == stem[-2]:
                found.add(stem[:-1])
            if stem[-1] == "i":
                found.add(stem[:-1] + "y")
            if ending == "ly":
                found.add(stem + "le")
    return found


def plurals(word: str) -> set[str]:
    """A word and its plurals."""
    forms = {word, word + "s"}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    if word.endswith("y"):
        forms.add(word[:-1] + "ies")
    return forms


def same(a: str, b: str) -> bool:
    return a in plurals(b) or b in plurals(a)


def facts(
    instruction: PublicInstruction, context: PrivateContext, strangers: Strangers, person: str = ""
) -> tuple[Unit, ...]:
    """The private facts of a profile and of past texts that the public instruction does not tell."""
    labels = dict(re.findall(r"^(\w+): (.*)$", context.profile, re.MULTILINE))
    titles = {item.title for item in context.history}
    texts = [value for label, value in labels.items() if label not in ("Name", "Location")] or [context.profile]
    texts += [text for item in context.history for text in (item.title, item.text)]
    units: set[Unit] = set()
    units |= _labelled("name", labels.get("Name", ""), strangers, person)
    for part in re.split(r"[,;/]", labels.get("Location", "")):
        units |= _labelled("place", part, strangers, person)
    for text in texts:
        units |= (
            _contacts(text) | _numbers(text) | _dates(text) | _words(text, strangers, person, is_title=text in titles)
        )
    return tuple(sorted(units - _told(units, Text.read(instruction.text)), key=str))


def _labelled(kind: str, value: str, strangers: Strangers, person: str) -> set[Unit]:
    words = [word.text for word in Text.read(value).words if len(word.text) > 1]
    units = {Unit(kind, (word,), capital=strangers.write(word, person)) for word in words}
    return units | ({Unit(kind, tuple(words))} if len(words) > 1 else set())


def _contacts(text: str) -> set[Unit]:
    return {Unit("e-mail", (re.sub(r"[\W_]", "", found.casefold()),)) for found in EMAIL.findall(text)} | {
        Unit("phone", (digits,)) for found in PHONE.findall(text) if len(digits := re.sub(r"\D", "", found)) >= 7
    }


def _numbers(text: str) -> set[Unit]:
    return {Unit("number", (number,)) for number, _, _ in written_numbers(text) if len(re.sub(r"\D", "", number)) >= 2}


def written_numbers(text: str) -> Iterable[tuple[str, int, int]]:
    for match in NUMBER.finditer(text):
        whole = re.sub(r",(?=\d{3}\b)", "", match[0])
        yield re.sub(r"[,:]", ".", whole), match.start(), match.end()
        if re.search(r"[/\-]", whole):
            for part in NUMBER.finditer(re.sub(r"[/\-]", " ", match[0])):
                yield part[0], match.start() + part.start(), match.start() + part.end()


def spelled_numbers(words: Sequence[Word]) -> Iterable[tuple[int, int, int]]:
    """Numbers written as words: the value, and where."""
    index = 0
    while index < len(words):
        value, start = NUMBER_WORDS.get(words[index].text, ORDINALS.get(words[index].text)), index
        index += 1
        if value is None:
            continue
        last = NUMBER_WORDS.get(words[index].text, ORDINALS.get(words[index].text, 0)) if index < len(words) else 0
        if value >= 20 and 1 <= last <= 9:
            value, index = value + last, index + 1
        elif value >= 10 and last >= 10:  # a year, as in nineteen eighty-four
            rest = (
                ORDINALS.get(words[index + 1].text, NUMBER_WORDS.get(words[index + 1].text, 0))
                if (index + 1 < len(words))
                else 0
            )
            with_one = last >= 20 and 1 <= rest <= 9
            value, index = value * 100 + last + (rest if with_one else 0), index + (2 if with_one else 1)
        elif index < len(words) and words[index].text == "hundred":
            value, index = value * 100, index + 1
        yield value, words[start].start, words[index - 1].end


def _dates(text: str) -> set[Unit]:
    return {Unit("date", date) for date, _, _ in written_dates(Text.read(text))}


def written_dates(text: Text) -> Iterable[tuple[tuple[str, str], int, int]]:
    """Month and day, both as folded words, however they are written."""
    words = text.words
    for index, word in enumerate(words):
        months = [name for name in MONTHS if word.text == name or (word.text == name[:3] and word.capital)]
        if not months:
            continue
        for offset in (-3, -2, -1, 1, 2):
            other = index + offset
            if not 0 <= other < len(words):
                continue
            day = re.fullmatch(r"(\d{1,2})(?:st|nd|rd|th)?", words[other].text)
            value = int(day[1]) if day else ORDINALS.get(words[other].text, 0)
            between = {w.text for w in words[min(index, other) + 1 : max(index, other)]}
            if 1 <= value <= 31 and between <= {"of", "the"}:
                start, end = min(word.start, words[other].start), max(word.end, words[other].end)
                yield (months[0], str(value)), start, end
    for match in re.finditer(r"\b(?:\d{4}[/.\-])?(\d{1,2})[/.\-](\d{1,2})\b", text.plain):
        for month, day in ((int(match[1]), int(match[2])), (int(match[2]), int(match[1]))):
            if 1 <= month <= 12 and 1 <= day <= 31:
                yield (MONTHS[month - 1], str(day)), match.start(), match.end()


def _words(text: str, strangers: Strangers, person: str, *, is_title: bool = False) -> set[Unit]:
    read = Text.read(text)
    words = read.words
    units = set()
    for index, word in enumerate(words):
        ordinary = strangers.say(word.text, person) or _is_what_strangers_say(word, read, strangers, person)
        letters = any(character.isalpha() for character in word.text)
        name = word.capital and not word.initial
        if letters and not ordinary and (len(word.text) >= 4 or (name and len(word.text) >= 2)):
            units.add(Unit("name" if name else "rare", (word.text,)))
        if name and ordinary and words[index - 1].text in NAMED:  # a dog named Pepper
            units.add(Unit("name", (word.text,), capital=True))
    for a, b in pairwise(words):
        together = not read.plain[a.end : b.start].strip() and a.capital and b.capital and not a.initial
        # In a title every word is capitalised, which says nothing; "I" is always.
        if together and not is_title and "i" not in (a.text, b.text) and not strangers.run((a.text, b.text), person):
            ordinary = all(strangers.say(word.text, person) for word in (a, b))
            units.add(Unit("names", (a.text, b.text), capital=ordinary))
    for start in range(len(words) - PHRASE_LENGTH + 1):
        run = words[start : start + PHRASE_LENGTH]
        said = tuple(word.text for word in run)
        content = [word for word in said if len(word) > 3 and word.isalpha() and word not in strangers.function_words]
        if len(content) >= 3 and not any(w.initial for w in run[1:]) and not strangers.run(said, person):
            units.add(Unit("phrase", said))
    return units


def _is_what_strangers_say(word: Word, text: Text, strangers: Strangers, person: str) -> bool:
    """Whether it is ordinary words written as one, as hashtags are."""
    pieces = re.findall(r"[A-Z][a-z]+", text.plain[word.start : word.end])
    said = [piece.casefold() for piece in pieces]
    return "".join(said) == word.text and len(said) == 2 and strangers.run(said, person)


def _told(units: Iterable[Unit], instruction: Text) -> set[Unit]:
    """The units that the instruction tells."""
    known = {stem for word in instruction.words for stem in stems(word.text)}
    squeezed = instruction.squeezed[0]
    spelled = {str(value) for value, _, _ in spelled_numbers(instruction.words)}
    written = {number for number, _, _ in written_numbers(instruction.plain)} | spelled
    dates = {date for date, _, _ in written_dates(instruction)}
    told = set()
    for unit in units:
        if unit.kind in ("e-mail", "phone"):
            is_told = unit.squeezed in squeezed
        elif unit.kind == "number":
            is_told = unit.words[0] in written
        elif unit.kind == "date":
            is_told = unit.words in dates
        else:
            is_told = all(not known.isdisjoint(stems(word)) for word in unit.words)
        if is_told:
            told.add(unit)
    return told
