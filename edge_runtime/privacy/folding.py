"""Folds characters so that every way of writing a letter looks the same: case, accents, full width, look-alikes."""

from __future__ import annotations

import unicodedata
from enum import IntEnum
from functools import cache
from typing import NamedTuple


class Kind(IntEnum):
    """What a character is to its word; IGNORED ones (zero-width, combining) neither join nor part anything."""

    SEPARATOR = 0
    IGNORED = 1
    LOWER = 2
    UPPER = 3
    DIGIT = 4


class Folded(NamedTuple):
    """A character's plain letters ("" for separators and ignored ones), and what it is."""

    letters: str
    kind: Kind


# Letters that Unicode does not decompose, and those of other scripts that can't be told from Latin ones by eye.
_LETTERS: dict[int, int | str] = {0xE6: "ae", 0x153: "oe", 0xFE: "th"}
_LETTERS |= str.maketrans(
    "\u0142\u00f8\u0111\u0127\u0131\u00f0\u0251\u0261\u0269\u029f\u0274\u0280\u028f\u0299\u0262\u029c\u026a"
    "\u0430\u0432\u0435\u0456\u0458\u043a\u043c\u043d\u043e\u0440\u0441\u0455\u0442\u0443\u0445\u0501\u051b\u051d\u04bb"
    "\u03b1\u03b2\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "lodhidagilnrybghi" + "abeijkmhopcstyxdqwh" + "abeiknoptux",
)
# Small capitals, and Armenian letters.
_LETTERS |= str.maketrans(
    "\u1d00\u0299\u1d04\u1d05\u1d07\ua730\u0262\u029c\u026a\u1d0a\u1d0b\u029f\u1d0d\u0274\u1d0f\u1d18\u0280"
    "\ua731\u1d1b\u1d1c\u1d20\u1d21\u028f\u1d22\u0585\u0578\u057d\u0570\u0581\u0566\u0584\u0575",
    "abcdefghijklmnoprstuvwyzonuhgqpj",
)
_SEPARATORS = frozenset(
    "\u02b9\u02ba\u02bb\u02bc\u02bd\u02be\u02bf\u02c8\u02ca\u02cb"
)  # apostrophes that Unicode calls letters
_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0")  # letters without a glyph


@cache
def fold(character: str) -> Folded:
    """Fold one character."""
    if character in _SEPARATORS:
        return Folded("", Kind.SEPARATOR)
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Mc", "Cf") or character in _INVISIBLE:
        return Folded("", Kind.IGNORED)
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()).translate(_LETTERS)
    letters = "".join(_digit(part) for part in plain if part.isalnum())
    if not letters:
        return Folded("", Kind.SEPARATOR)
    if letters.isdecimal():
        return Folded(letters, Kind.DIGIT)
    # NFKC shows the case of "Ａ" and "𝐀", which are not upper case by themselves.
    upper = unicodedata.normalize("NFKC", character)[:1].isupper()
    return Folded(letters, Kind.UPPER if upper else Kind.LOWER)


def squeeze(text: str) -> str:
    """The plain letters and digits of a text, and nothing between them."""
    return "".join(fold(character).letters for character in text)


def starts_inside(before: Kind, kind: Kind) -> bool:
    """Whether a word starts between two characters of one run: "adaLindqvist", "ada37"."""
    return (before is Kind.LOWER and kind is Kind.UPPER) or (before is Kind.DIGIT) is not (kind is Kind.DIGIT)


def _digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character
