"""Writes an outline of 8 to 15 numbered points of 3 to 8 words with a model that may not follow this form.

The code writes the numbers and the model the words. If a point repeats an earlier one or is not a short phrase, the
model writes it again without its first token. After a few failures, the point is composed of whole words. So every
model's outline has the right form. Decoding is greedy, so the same instruction gives the same outline.
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
"""Maximum length of an outline in tokens."""
_TRIES = 4


Result = TypeVar("Result")
Turns = Generator[None, None, Result]
"""Work that yields so that other sessions can run in between."""
Feed = Callable[[int, Sequence[int]], Turns[NDArray[np.float32]]]
"""`feed(start, tokens)`: discard tokens from position `start` on, append `tokens`, return the next (V,) row."""


@dataclass(frozen=True, eq=False, slots=True)
class SketchWords:
    """Properties of a vocabulary's tokens that outlines need; masks are (V,) bool.

    Attributes:
        tokenizer: encodes and decodes points.
        newline: tokens with a line break.
        never: special tokens and tokens that end an answer.
        words: tokens that are a whole word with a leading space.
        ends: ids that end an answer.
    """

    tokenizer: Tokenizer
    newline: NDArray[np.bool_]
    never: NDArray[np.bool_]
    words: NDArray[np.bool_]
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> SketchWords:
        """Classify a vocabulary's tokens; once per model."""
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
        """Encode a part of the outline."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode a part of the outline."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def write_outline(prompt: Sequence[int], feed: Feed, words: SketchWords) -> Generator[str | None, None, None]:
    """Yield the outline's lines, such as `1. Why the garden matters` with a newline, and None between model runs.

    Args:
        prompt: token ids of `outline_messages` in the model's chat template.
        feed: runs the model.
        words: properties of the model's vocabulary.
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
    """Write the next point; None if there are enough points and the model adds no new one."""
    refused = np.zeros_like(words.never)  # banned first tokens
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
    """Let the model write freely until a line break, or until the point is too long."""
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
    """Compose a point of the likeliest whole words; no other point has the same first word, so it is new."""
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
