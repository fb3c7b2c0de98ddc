"""The form of an outline: how a model is asked for one, and which lines count as its points."""

from __future__ import annotations

import re
from collections.abc import Sequence

MIN_POINTS = 8


MAX_POINTS = 15


MIN_WORDS = 3


MAX_WORDS = 8


MAX_CHARACTERS = 80


USUAL_WORDS = 5
"""Where a point is cut that does not end by itself."""


_TOO_SIMILAR = 0.5
"""Share of common words (Jaccard) from which on two points say the same."""


# Two Chinese or Japanese characters count as a word; these scripts put no spaces.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"


WORD = re.compile(rf"[{_CJK}]{{1,2}}|[^\s{_CJK}]+")


EDGES = " \t*_#`\"'\u201c\u201d\u2018\u2019-\u2013\u2014:;,.()[]"


PAUSES = ",;:.!?)"


LOOSE_ENDS = frozenset(
    {
        "a",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "but",
        "by",
        "for",
        "from",
        "how",
        "i",
        "i'm",
        "if",
        "in",
        "into",
        "is",
    }
    | {
        "it",
        "my",
        "of",
        "on",
        "or",
        "our",
        "that",
        "the",
        "their",
        "this",
        "to",
        "was",
        "were",
        "when",
        "which",
        "with",
    }
    | {"who", "you", "your"}
)


_QUESTION = (
    "Write the skeleton of a text for this task: a numbered list of 8 to 15 points, each 3 to 5 words long.\n\nTask: {}"
)


EXAMPLE_TASK = "Write a speech for the opening of a small town library."


EXAMPLE_POINTS = (
    "Warm welcome to guests",
    "Why the town needed books",
    "Years of patient fundraising",
    "Thanks to builders and donors",
    "A tour of the rooms",
    "Quiet corners for reading",
    "Story hours for children",
    "Evening courses for adults",
    "Invitation to join today",
)


def outline_messages(instruction: str) -> list[dict[str, str]]:
    """The chat that is put to the model in place of the instruction; one worked example shows the form."""
    example = "\n".join(f"{number}. {point}" for number, point in enumerate(EXAMPLE_POINTS, 1))
    return [
        {"role": "user", "content": _QUESTION.format(EXAMPLE_TASK)},
        {"role": "assistant", "content": example},
        {"role": "user", "content": _QUESTION.format(instruction.strip())},
    ]


def shorten(text: str) -> str:
    """Cut a line to a phrase: at its first pause after three words, else after five; without loose ends."""
    line = text.strip().splitlines()[0].replace("**", "").strip(EDGES) if text.strip() else ""
    spans = [match.span() for match in WORD.finditer(line)]
    count = len(spans)
    if count > USUAL_WORDS:
        pauses = [index for index, (_, end) in enumerate(spans, 1) if line[end - 1] in PAUSES or end == len(line)]
        count = next((index for index in pauses if MIN_WORDS <= index <= MAX_WORDS), USUAL_WORDS)
    while count > MIN_WORDS and line[slice(*spans[count - 1])].casefold() in LOOSE_ENDS:
        count -= 1
    return line[: spans[count - 1][1]].strip(EDGES) if count else ""


def is_point(text: str) -> bool:
    """Whether a line is a short phrase: 3 to 8 words, printable, with a letter or digit."""
    return (
        MIN_WORDS <= count_words(text) <= MAX_WORDS
        and len(text) <= MAX_CHARACTERS
        and text.isprintable()
        and "\ufffd" not in text
        and any(character.isalnum() for character in text)
    )


def count_words(text: str) -> int:
    """Words of a line."""
    return sum(1 for _ in WORD.finditer(text))


def repeats(text: str, earlier: Sequence[str]) -> bool:
    """Whether a point says the same as an earlier one."""
    own = _word_set(text)
    return any(len(own & other) >= _TOO_SIMILAR * len(own | other) for other in map(_word_set, earlier))


def _word_set(text: str) -> frozenset[str]:
    words = frozenset(word.strip(EDGES).casefold() for word in WORD.findall(text))
    return words - LOOSE_ENDS or words


def dangles(point: str) -> bool:
    """Whether a point breaks off at a word that calls for another."""
    return WORD.findall(point)[-1].casefold() in LOOSE_ENDS
