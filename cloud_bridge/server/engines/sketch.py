"""Writes an outline with a model that can't be trusted to keep to a form: 8 to 15 numbered points of 3 to 8 words.

The numbers are ours, the words are the model's. A point that repeats an earlier one or is no short phrase is written
again without its first token; if that fails a few times, it is put together from whole words. So the form always holds,
whatever the model is. Everything is greedy: the same instruction gives the same outline.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cloud_bridge.outline import (
    EDGES,
    EXAMPLE_POINTS,
    LOOSE_ENDS,
    MAX_POINTS,
    MAX_WORDS,
    MIN_POINTS,
    MIN_WORDS,
    PAUSES,
    USUAL_WORDS,
    WORD,
    count_words,
    dangles,
    is_point,
    repeats,
    shorten,
)

_POINT_TOKENS = 24
OUTLINE_TOKENS = MAX_POINTS * (_POINT_TOKENS + 6)
"""Context that an outline may take."""
_TRIES = 4


Result = TypeVar("Result")
Turns = Generator[None, None, Result]
"""Work that lets others have their turn in between."""
Feed = Callable[[int, Sequence[int]], Turns[NDArray[np.float32]]]
"""`feed(start, tokens)`: forget all from position `start`, append `tokens`, give the (V,) log-probabilities behind."""


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


def _feed_behind(feed: Feed, position: int, start: int, tokens: Sequence[int]) -> Turns[NDArray[np.float32]]:
    return feed(position + start, tokens)


def _write_point(row: NDArray[np.float32], feed: Feed, words: SketchWords, points: Sequence[str]) -> Turns[str | None]:
    """The next point; None where enough are there and the model has no new one to add."""
    refused = np.zeros_like(words.never)  # as a first token
    enough = len(points) >= MIN_POINTS
    for _ in range(1 if enough else _TRIES):
        ids = yield from _free_phrase(row, feed, words, refused)
        point = shorten(words.decode(ids))
        if is_point(point) and not dangles(point) and not repeats(point, [*EXAMPLE_POINTS, *points]):
            return point
        refused[ids[0]] = True
    return None if enough else (yield from _phrase_of_words(row, feed, words, points))


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
        paused = text[-1:] in PAUSES and count_words(text) >= MIN_WORDS
        if paused or count_words(text) > MAX_WORDS or len(ids) == _POINT_TOKENS:
            return ids
        row = yield from feed(len(ids) - 1, [token])


def _phrase_of_words(row: NDArray[np.float32], feed: Feed, words: SketchWords, points: Sequence[str]) -> Turns[str]:
    """The likeliest whole words; the first is no other point's first, so the phrase is new."""
    firsts = frozenset(WORD.findall(point)[0].strip(EDGES).casefold() for point in points)
    ids = [_likeliest_word(row, words, frozenset(), firsts)]
    while len(ids) < USUAL_WORDS - 1:
        row = yield from feed(len(ids) - 1, [ids[-1]])
        last = len(ids) == USUAL_WORDS - 2
        ids.append(_likeliest_word(row, words, frozenset(ids), LOOSE_ENDS if last else frozenset()))
    return " ".join(words.decode([token]).strip() for token in ids)


def _likeliest_word(row: NDArray[np.float32], words: SketchWords, used: frozenset[int], without: frozenset[str]) -> int:
    for token in np.argsort(-np.where(words.words, row, -np.inf), kind="stable"):
        if int(token) not in used and words.decode([int(token)]).strip().casefold() not in without:
            return int(token)
    raise ValueError("the vocabulary has no word left for an outline")
