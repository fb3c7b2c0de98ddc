"""Reads a context as lines and words, with what labels and capitals say of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edge_runtime.context import PrivateContext
from edge_runtime.privacy.folding import Kind, fold, squeeze, starts_inside

APOSTROPHES = "'\u2019\u02bc\uff07"

_NAME_LINE = re.compile(r"\s*(?:\w+[ _])?name\s*:", re.IGNORECASE)
_PLACE_LINE = re.compile(r"\s*(?:location|address|city|hometown|employer|company)\s*:", re.IGNORECASE)
_LABEL = re.compile(r"\s*[\w -]{1,40}:(?!//)")
_SENTENCE_END = re.compile(r"[.!?;:\n\"\u201c\u201d\u2018\u00ab\u00bb*#\u2022|]|(?<!\w)'")
_INVISIBLE = "\u0300-\u036f\u00ad\u200b-\u200d\u2060\ufeff"
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{_INVISIBLE}])*(?:[{APOSTROPHES}][^\W\d_]+)*")
_SUFFIX = re.compile(rf"[{APOSTROPHES}](?:s|t|d|m|ll|re|ve)?\Z", re.IGNORECASE)  # of possessives and contractions


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, or a part of one that a capital or a digit begins ("Talk" of "TechTalk").

    Attributes:
        surface: as it is written.
        key: its plain letters.
        capital: it is capitalised.
        inside: it does not start a sentence.
        start, end: its place in the text.
    """

    surface: str
    key: str
    capital: bool
    inside: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the context.

    Attributes:
        text: without its label.
        words: of the text.
        titled: capitals mean nothing in it.
        placed: its capitalised words are names, of places or companies.
        named: its words are the user's names, in any case.
    """

    text: str
    words: tuple[Word, ...]
    titled: bool = False
    placed: bool = False
    named: bool = False


class WrittenWord(NamedTuple):
    """A word as it is written, without the ending of a possessive or contraction.

    Attributes:
        surface: as it is written.
        start: its place in the text.
        end: where it ends there, with its ending.
        parts: (start, end) within the surface; a new one where a capital follows a small letter, or a digit begins.
    """

    surface: str
    start: int
    end: int
    parts: tuple[tuple[int, int], ...]


def lines_of(context: PrivateContext) -> Iterator[Line]:
    """The lines of the profile, and of the past texts with their titles."""
    for line in context.profile.splitlines():
        label = _LABEL.match(line)  # "Name:" is the form's word, not the user's, and what follows may be a name
        if label is None:
            yield _line(line)
        else:
            named, placed = (form.match(line) is not None for form in (_NAME_LINE, _PLACE_LINE))
            text = line[label.end() :]
            yield Line(text, tuple(words_of(text, inside=True)), placed=placed or named, named=named)
    for item in context.history:
        yield from (_line(line, titled=True) for line in item.title.splitlines())
        yield from (_line(line) for line in item.text.splitlines())


def words_of(text: str, *, inside: bool = False) -> Iterator[Word]:
    """The words of a text: runs of letters or of digits, parted where a capital follows a small letter.

    Args:
        text: any.
        inside: it starts within a sentence.
    """
    end = 0
    for written in written_words(text):
        inside = inside and not _SENTENCE_END.search(text, end, written.start)
        end = written.end
        for start, stop in written.parts:
            surface = written.surface[start:stop]
            if key := squeeze(surface):
                yield Word(surface, key, _is_capital(surface), inside, written.start + start, written.start + stop)
            inside = True


def written_words(text: str) -> Iterator[WrittenWord]:
    """The words of a text as they are written."""
    for match in _WORD.finditer(text):
        surface = _SUFFIX.sub("", match.group())
        yield WrittenWord(surface, match.start(), match.end(), _parts(surface))


def _line(text: str, *, titled: bool = False) -> Line:
    return Line(text, tuple(words_of(text)), titled=titled)


def _parts(word: str) -> tuple[tuple[int, int], ...]:
    cuts, before = [0], Kind.SEPARATOR
    for index, character in enumerate(word):
        kind = fold(character).kind
        if kind is Kind.IGNORED:
            continue
        if before is not Kind.SEPARATOR and kind is not Kind.SEPARATOR and starts_inside(before, kind):
            cuts.append(index)
        before = kind
    return tuple(zip(cuts, [*cuts[1:], len(word)], strict=True))


def _is_capital(word: str) -> bool:
    return next((kind is Kind.UPPER for kind in (fold(c).kind for c in word) if kind is not Kind.IGNORED), False)
