"""Writes an outline with a model that can't be trusted to keep to a form: 8 to 15 numbered points of 3 to 8 words.

The numbers are ours, the words are the model's. A point that repeats an earlier one or is no short phrase is written
again without its first token; if that fails a few times, it is put together from whole words. So the form always holds,
whatever the model is. Everything is greedy: the same instruction gives the same outline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
_TOO_SIMILAR = 0.6
"""Share of common words (Jaccard) above which two points say the same."""

# Two Chinese or Japanese characters count as a word; these scripts put no spaces.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]{{1,2}}|[^\s{_CJK}]+")
_EDGES = " \t*_#`\"'\u201c\u201d\u2018\u2019-\u2013\u2014:;,.()[]"
_LOOSE_ENDS = frozenset(
    {"a", "an", "and", "as", "at", "but", "by", "for", "from", "how", "in", "into", "is", "of", "on", "or"}
    | {"that", "the", "their", "this", "to", "was", "were", "when", "which", "with", "your"}
)

Feed = Callable[[int, Sequence[int]], NDArray[np.float32]]
"""`feed(start, tokens)`: forget all from position `start`, append `tokens`, give the (V,) log-probabilities behind."""


def outline_prompt(instruction: str) -> str:
    """What the model is asked in place of the instruction."""
    return (
        f"{instruction.strip()}\n\n"
        "Do not write the text yet. First write its skeleton: a numbered list of 8 to 15 points, in the order of the "
        "text. Each point is a short phrase of 3 to 5 words that says what that part is about. "
        "No explanations, no sub-points, no repetition."
    )


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


def write_outline(prompt: Sequence[int], feed: Feed, words: SketchWords) -> Iterator[str]:
    """Yield the outline's lines, as in `1. Why the garden matters` and a newline.

    Args:
        prompt: token ids of `outline_prompt` in the model's chat template.
        feed: runs the model.
        words: of the model's vocabulary.
    """
    points: list[str] = []
    feed(0, prompt)
    position = len(prompt)
    for number in range(1, MAX_POINTS + 1):
        head = words.encode(f"{number}.")
        row = feed(position, head)
        position += len(head)
        point = _write_point(row, partial(_feed_behind, feed, position), words, points)
        points.append(point)
        yield f"{number}. {point}\n"
        if number == MAX_POINTS:
            return
        ids = words.encode(f" {point}")
        behind_point = feed(position, ids)
        if number >= MIN_POINTS and int(behind_point.argmax()) in words.ends:
            return
        newline = words.encode("\n")
        behind_newline = feed(position + len(ids), newline)
        goes_on = words.decode([int(behind_newline.argmax())]).strip().startswith(str(number + 1)[0])
        if number >= MIN_POINTS and not goes_on:
            return
        position += len(ids) + len(newline)


def shorten(text: str) -> str:
    """Cut a line to a phrase: at its first pause after three words, else after five, without loose ends."""
    line = text.strip().splitlines()[0].strip(_EDGES) if text.strip() else ""
    spans = [match.span() for match in _WORD.finditer(line)]
    if len(spans) <= _USUAL_WORDS:
        return line
    for _, end in spans[MIN_WORDS - 1 : MAX_WORDS]:
        if line[end - 1] in ",;:.!?)" or end == len(line):
            return line[:end].strip(_EDGES)
    count = _USUAL_WORDS
    while count > MIN_WORDS and line[slice(*spans[count - 1])].casefold() in _LOOSE_ENDS:
        count -= 1
    return line[: spans[count - 1][1]].strip(_EDGES)


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
    return any(len(own & other) > _TOO_SIMILAR * len(own | other) for other in map(_word_set, earlier))


def _feed_behind(feed: Feed, position: int, start: int, tokens: Sequence[int]) -> NDArray[np.float32]:
    return feed(position + start, tokens)


def _word_set(text: str) -> frozenset[str]:
    return frozenset(word.strip(_EDGES).casefold() for word in _WORD.findall(text))


def _write_point(row: NDArray[np.float32], feed: Feed, words: SketchWords, points: Sequence[str]) -> str:
    refused = np.zeros_like(words.never)  # as a first token
    for _ in range(_TRIES):
        ids = _free_phrase(row, feed, words, refused)
        point = shorten(words.decode(ids))
        if is_point(point) and not repeats(point, points):
            return point
        refused[ids[0]] = True
    return _phrase_of_words(row, feed, words, points)


def _free_phrase(row: NDArray[np.float32], feed: Feed, words: SketchWords, refused: NDArray[np.bool_]) -> list[int]:
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
        if count_words(text) > MAX_WORDS or len(ids) == _POINT_TOKENS:
            return ids
        row = feed(len(ids) - 1, [token])


def _phrase_of_words(row: NDArray[np.float32], feed: Feed, words: SketchWords, points: Sequence[str]) -> str:
    """The likeliest whole words; the first is no other point's first, so the phrase is new."""
    firsts = {_WORD.findall(point)[0].strip(_EDGES).casefold() for point in points}
    chosen: list[str] = []
    ids: list[int] = []
    for token in np.argsort(-np.where(words.words, row, -np.inf), kind="stable"):
        word = words.decode([int(token)]).strip()
        if word.casefold() not in firsts:
            ids.append(int(token))
            chosen.append(word)
            break
    while len(chosen) < _USUAL_WORDS - 1:
        row = feed(len(ids) - 1, [ids[-1]])
        allowed = words.words.copy()
        allowed[ids] = False
        ids.append(int(np.where(allowed, row, -np.inf).argmax()))
        chosen.append(words.decode([ids[-1]]).strip())
    return " ".join(chosen)
