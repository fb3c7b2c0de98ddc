"""Writes an outline with a model that can't be trusted to keep to a form: 8 to 15 numbered points of 3 to 8 words.

The numbers are ours, the words are the model's. A point that repeats an earlier one or is no short phrase is written
again without its first token; if that fails a few times, it is put together from whole words. So the form always holds,
whatever the model is. Everything is greedy: the same instruction gives the same outline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MIN_POINTS = 8
MAX_POINTS = 15
MIN_WORDS = 3
MAX_WORDS = 8
MAX_CHARACTERS = 80
_USUAL_WORDS = 5
"""Where a point is cut that does not end by itself."""
_POINT_TOKENS = 24
OUTLINE_TOKENS = MAX_POINTS * (_POINT_TOKENS + 6)
"""Context that an outline may take."""
_TRIES = 4
_TOO_SIMILAR = 0.5
"""Share of common words (Jaccard) from which on two points say the same."""

# Two Chinese or Japanese characters count as a word; these scripts put no spaces.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]{{1,2}}|[^\s{_CJK}]+")
_EDGES = " \t*_#`\"'\u201c\u201d\u2018\u2019-\u2013\u2014:;,.()[]"
_PAUSES = ",;:.!?)"
_LOOSE_ENDS = frozenset(
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
_EXAMPLE_TASK = "Write a speech for the opening of a small town library."
_EXAMPLE_POINTS = (
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

Result = TypeVar("Result")
Turns = Generator[None, None, Result]
"""Work that lets others have their turn in between."""
Feed = Callable[[int, Sequence[int]], Turns[NDArray[np.float32]]]
"""`feed(start, tokens)`: forget all from position `start`, append `tokens`, give the (V,) log-probabilities behind."""


def outline_messages(instruction: str) -> list[dict[str, str]]:
    """The chat that is put to the model in place of the instruction; one worked example shows the form."""
    example = "\n".join(f"{number}. {point}" for number, point in enumerate(_EXAMPLE_POINTS, 1))
    return [
        {"role": "user", "content": _QUESTION.format(_EXAMPLE_TASK)},
        {"role": "assistant", "content": example},
        {"role": "user", "content": _QUESTION.format(instruction.strip())},
    ]


@dataclass(frozen=True, eq=False, slots=True)
class SketchWords:
    """A vocabulary as the outline needs it; masks are (V,) bool.

    Attributes:
        tokenizer: encodes and decodes points.
        newline: tokens with a line break.
        never: special tokens and ends.
        words: tokens that are a whole word, with the space before it.
        ends: ids that end an answer.
    """

    tokenizer: Tokenizer
    newline: NDArray[np.bool_]
    never: NDArray[np.bool_]
    words: NDArray[np.bool_]
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> SketchWords:
        """Sort a vocabulary's tokens; once for every model."""
        texts = tokenizer.decode_batch([[token] for token in range(vocab_size)], skip_special_tokens=False)
        special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special} | ends
        starts = [(tokenizer.id_to_token(token) or "").startswith(("Ġ", "▁", " ")) for token in range(vocab_size)]
        is_word = [
            start and text.strip().isalpha() and len(text.strip()) > 1
            for start, text in zip(starts, texts, strict=True)
        ]
        never = np.array([token in special for token in range(vocab_size)])
        return cls(tokenizer, np.array(["\n" in text for text in texts]), never, np.array(is_word) & ~never, ends)

    def encode(self, text: str) -> list[int]:
        """Token ids of a part of the outline."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a part of the outline."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def write_outline(prompt: Sequence[int], feed: Feed, words: SketchWords) -> Generator[str | None, None, None]:
    """Yield the outline's lines, as in `1. Why the garden matters` and a newline; None between two runs of the model.

    Args:
        prompt: token ids of `outline_messages` in the model's chat template.
        feed: runs the model.
        words: of the model's vocabulary.
    """
    points: list[str] = []
    row = yield from feed(0, [*prompt, *words.encode("1.")])
    position = len(prompt) + len(words.encode("1."))
    newline = words.encode("\n")
    while True:
        point = yield from _write_point(row, partial(_feed_behind, feed, position), words, points)
        if point is None:
            return
        points.append(point)
        yield f"{len(points)}. {point}\n"
        if len(points) == MAX_POINTS:
            return
        head = words.encode(f"{len(points) + 1}.")
        behind = [*words.encode(f" {point}"), *newline]
        if len(points) >= MIN_POINTS:
            row = yield from feed(position, behind[: -len(newline)])
            if int(row.argmax()) in words.ends:
                return
            row = yield from feed(position + len(behind) - len(newline), newline)
            if not words.decode([int(row.argmax())]).strip().startswith(str(len(points) + 1)[0]):
                return
            row = yield from feed(position + len(behind), head)
        else:
            row = yield from feed(position, [*behind, *head])
        position += len(behind) + len(head)


def shorten(text: str) -> str:
    """Cut a line to a phrase: at its first pause after three words, else after five; without loose ends."""
    line = text.strip().splitlines()[0].replace("**", "").strip(_EDGES) if text.strip() else ""
    spans = [match.span() for match in _WORD.finditer(line)]
    count = len(spans)
    if count > _USUAL_WORDS:
        pauses = [index for index, (_, end) in enumerate(spans, 1) if line[end - 1] in _PAUSES or end == len(line)]
        count = next((index for index in pauses if MIN_WORDS <= index <= MAX_WORDS), _USUAL_WORDS)
    while count > MIN_WORDS and line[slice(*spans[count - 1])].casefold() in _LOOSE_ENDS:
        count -= 1
    return line[: spans[count - 1][1]].strip(_EDGES) if count else ""


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
    return sum(1 for _ in _WORD.finditer(text))


def repeats(text: str, earlier: Sequence[str]) -> bool:
    """Whether a point says the same as an earlier one."""
    own = _word_set(text)
    return any(len(own & other) >= _TOO_SIMILAR * len(own | other) for other in map(_word_set, earlier))


def _feed_behind(feed: Feed, position: int, start: int, tokens: Sequence[int]) -> Turns[NDArray[np.float32]]:
    return feed(position + start, tokens)


def _word_set(text: str) -> frozenset[str]:
    words = frozenset(word.strip(_EDGES).casefold() for word in _WORD.findall(text))
    return words - _LOOSE_ENDS or words


def _write_point(row: NDArray[np.float32], feed: Feed, words: SketchWords, points: Sequence[str]) -> Turns[str | None]:
    """The next point; None where enough are there and the model has no new one to add."""
    refused = np.zeros_like(words.never)  # as a first token
    enough = len(points) >= MIN_POINTS
    for _ in range(1 if enough else _TRIES):
        ids = yield from _free_phrase(row, feed, words, refused)
        point = shorten(words.decode(ids))
        if is_point(point) and not _dangles(point) and not repeats(point, [*_EXAMPLE_POINTS, *points]):
            return point
        refused[ids[0]] = True
    return None if enough else (yield from _phrase_of_words(row, feed, words, points))


def _dangles(point: str) -> bool:
    return _WORD.findall(point)[-1].casefold() in _LOOSE_ENDS


def _free_phrase(
    row: NDArray[np.float32], feed: Feed, words: SketchWords, refused: NDArray[np.bool_]
) -> Turns[list[int]]:
    """The model's own words up to a line break or one word too many."""
    ids: list[int] = []
    text = ""
    while True:
        banned = words.never | refused if not ids else words.never
        if count_words(text) < MIN_WORDS:
            banned = banned | words.newline
        token = int(np.where(banned, -np.inf, row).argmax())
        if words.newline[token]:
            return ids
        ids.append(token)
        text = words.decode(ids)
        paused = text[-1:] in _PAUSES and count_words(text) >= MIN_WORDS
        if paused or count_words(text) > MAX_WORDS or len(ids) == _POINT_TOKENS:
            return ids
        row = yield from feed(len(ids) - 1, [token])


def _phrase_of_words(row: NDArray[np.float32], feed: Feed, words: SketchWords, points: Sequence[str]) -> Turns[str]:
    """The likeliest whole words; the first is no other point's first, so the phrase is new."""
    firsts = frozenset(_WORD.findall(point)[0].strip(_EDGES).casefold() for point in points)
    ids = [_likeliest_word(row, words, frozenset(), firsts)]
    while len(ids) < _USUAL_WORDS - 1:
        row = yield from feed(len(ids) - 1, [ids[-1]])
        last = len(ids) == _USUAL_WORDS - 2
        ids.append(_likeliest_word(row, words, frozenset(ids), _LOOSE_ENDS if last else frozenset()))
    return " ".join(words.decode([token]).strip() for token in ids)


def _likeliest_word(row: NDArray[np.float32], words: SketchWords, used: frozenset[int], without: frozenset[str]) -> int:
    for token in np.argsort(-np.where(words.words, row, -np.inf), kind="stable"):
        if int(token) not in used and words.decode([int(token)]).strip().casefold() not in without:
            return int(token)
    raise ValueError("the vocabulary has no word left for an outline")
