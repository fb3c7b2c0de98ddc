"""The forms in which a word or a number can be written: regular inflections, numbers as words, and what is common."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("s", ("",)),
    ("es", ("",)),
    ("ies", ("y",)),
    ("ed", ("", "e")),
    ("ied", ("y",)),
    ("ing", ("", "e")),
    ("er", ("", "e")),
    ("ers", ("", "e")),
    ("ier", ("y",)),
    ("est", ("", "e")),
    ("iest", ("y",)),
    ("ly", ("", "le")),
    ("ily", ("y",)),
    ("ness", ("",)),
    ("iness", ("y",)),
    ("ful", ("",)),
    ("less", ("",)),
)
_DOUBLING = ("ed", "ing", "er", "est")
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth"}
VALUES = {word: value for value, word in enumerate(_ONES)} | {
    word: 10 * value for value, word in enumerate(_TENS) if value > 1
}
"""What the words for 0 to 19 and the tens stand for."""


def stems(word: str) -> set[str]:
    """The word, and what it may be a regular form of: "carries" and "carry", "stopped" and "stop"."""
    found = {word}
    if word.isalpha() and word.isascii():
        for ending, replacements in _ENDINGS:
            stem = word.removesuffix(ending)
            if stem != word and len(stem) >= 3:
                found.update(stem + replacement for replacement in replacements)
                if ending in _DOUBLING and len(stem) >= 4 and stem[-1] == stem[-2]:
                    found.add(stem[:-1])
    return found


def inflections(word: str) -> set[str]:
    """The regular forms of a word and of what it may be a form of, itself among them."""
    found = {word}
    for stem in stems(word):
        found.add(stem)
        if not stem.isascii() or not stem.isalpha():
            continue
        found.add(stem + "s")
        if stem.endswith("y"):
            found |= {stem[:-1] + ending for ending in ("ies", "ied", "ier", "ily")}
        if stem.endswith(("s", "x", "z", "ch", "sh", "o")):
            found.add(stem + "es")
        root = stem.removesuffix("e")
        found |= {root + ending for ending in ("ed", "ing", "er", "ers")} | {stem + "ly"}
        if len(stem) > 2 and stem[-1] not in "aeiouwxy" and stem[-2] in "aeiou" and stem[-3] not in "aeiou":
            found |= {stem + stem[-1] + ending for ending in ("ed", "ing", "er")}
    return {form for form in found if len(form) > 2 or form == word}


def number_words(number: int) -> set[str]:
    """A number in English words without spaces: {"thirtyseven", "thirtyseventh"}; empty from 10,000 on."""
    if number >= 10_000:
        return set()
    found = {*_cardinal(number)}
    if 1000 < number < 10_000 and number % 1000 >= 100:
        # Years and the like are read in pairs.
        for left in _cardinal(number // 100):
            rest = number % 100
            ends = _cardinal(rest) if rest >= 10 else {"hundred"} if not rest else {"oh" + _ONES[rest]}
            found |= {left + end for end in ends}
    elif 1000 < number < 10_000 and number % 100 and number % 100 >= 10:
        found |= {left + right for left in _cardinal(number // 100) for right in _cardinal(number % 100)}
    return found | {_ordinal(words) for words in found}


@cache
def listed(name: str) -> frozenset[str]:
    """A word list of the package: "common_words" or "function_words"."""
    text = files("edge_runtime.privacy").joinpath(f"words/{name}.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))


@cache
def is_common(word: str) -> bool:
    """Whether the list of common words has this word or what it is a regular form of."""
    return bool(stems(word) & listed("common_words")) or is_function_word(word)


def is_function_word(word: str) -> bool:
    """Whether the word means nothing by itself ("the", "Monday", "Mr")."""
    return word in listed("function_words")


def _cardinal(number: int) -> set[str]:
    return set(_cardinals(number))


def _cardinals(number: int) -> Iterator[str]:
    if number < 20:
        yield _ONES[number]
    elif number < 100:
        yield _TENS[number // 10] + (_ONES[number % 10] if number % 10 else "")
    else:
        size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
        for head in _cardinals(number // size):
            if not number % size:
                yield head + name
                continue
            for tail in _cardinals(number % size):
                yield head + name + tail
                yield head + name + "and" + tail


def _ordinal(words: str) -> str:
    for word, ordinal in _ORDINALS.items():
        if words.endswith(word):
            return words.removesuffix(word) + ordinal
    return words[:-1] + "ieth" if words.endswith("y") else words + "th"
