"""Outlines keep their form whatever the model writes: 8 to 15 numbered, distinct points of 3 to 8 words."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_bridge.outline import MAX_WORDS, count_words, repeats, shorten
from cloud_bridge.server.engines.sketch import SketchWords, write_outline
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import CloudContextFullError
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger


def sketch(client, instruction: str) -> list[str]:
    return list(client.sketch(Gate(Policy.SKETCH, Ledger()).sketch(PublicInstruction(instruction))))


def assert_outline(lines: list[str]) -> None:
    assert 8 <= len(lines) <= 15
    points = []
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(rf"{number}\. (\S.*\S)\n", line)
        assert match, line
        points.append(match[1])
        if any(unicodedata.east_asian_width(character) == "W" for character in match[1]):  # no spaces between words
            assert 3 <= len(match[1]) <= 80, line
        else:
            assert 3 <= len(match[1].split()) <= 8, line
        assert match[1].isprintable()
        assert "\ufffd" not in match[1]
        assert any(character.isalnum() for character in match[1])
    assert len({point.casefold() for point in points}) == len(points)


def test_an_untrained_model_gives_a_valid_outline_the_same_each_time(client):
    first = sketch(client, "Write a letter to a lighthouse keeper.")
    assert_outline(first)
    assert sketch(client, "Write a letter to a lighthouse keeper.") == first


@pytest.fixture(scope="module")
def words(oracle) -> SketchWords:
    ends = frozenset({oracle.tokenizer.eos_token_id})
    return SketchWords.of(oracle.tokenizer.backend_tokenizer, oracle.vocab_size, ends)


def outline_of(row_after, words: SketchWords) -> list[str]:
    """The outline of a model whose next row is a function of all tokens before it."""
    fed: list[int] = []

    def feed(start: int, tokens):
        yield
        assert 0 <= start <= len(fed)
        assert len(tokens) > 0
        fed[start:] = tokens
        return row_after(fed)

    return [line for line in write_outline([1, 2, 3], feed, words) if line is not None]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sharpness=st.sampled_from([0.0, 1.0, 30.0]))
def test_any_random_model_gives_a_valid_outline(seed, sharpness, words):
    def row_after(fed):
        rng = np.random.default_rng([seed, *fed[-3:]])
        return (rng.normal(size=words.never.size) * sharpness).astype(np.float32)

    assert_outline(outline_of(row_after, words))


@pytest.mark.parametrize("wish", ["\n", "<|im_end|>", "a", "1", ".", " the", "Ã", " "])
def test_a_model_with_one_wish_gives_a_valid_outline(wish, words):
    token = words.tokenizer.encode(wish, add_special_tokens=False).ids[0]

    def row_after(fed):
        row = np.zeros(words.never.size, np.float32)
        row[token] = 9.0
        return row

    assert_outline(outline_of(row_after, words))


def test_the_model_may_end_the_outline_after_eight_points(words):
    end = next(iter(words.ends))

    def row_after(fed):
        row = np.random.default_rng(fed[-3:]).normal(size=words.never.size).astype(np.float32)
        row[end] = 100.0
        return row

    lines = outline_of(row_after, words)
    assert_outline(lines)
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("Why gardens matter", "Why gardens matter"),
        (" **The first harvest**: what grew in spring and summer", "The first harvest"),
        ("- Spring: the **first** harvest", "Spring: the first harvest"),
        ("Thanks to all helpers, who came each week", "Thanks to all helpers"),
        ("A long walk through the woods with my old dog", "A long walk through"),
        ("東京タワーについて書くときの大切なこと", "東京タワーについて書"),
        ("", ""),
    ],
)
def test_a_long_line_is_cut_where_it_pauses(line, point):
    assert shorten(line) == point


@given(st.text(max_size=200))
def test_a_cut_line_is_never_longer_than_a_point(text):
    assert count_words(shorten(text)) <= MAX_WORDS


def test_points_that_share_most_words_repeat_each_other():
    assert repeats("The team's vision", ["the team's Vision"])
    assert repeats("Two weeks off for me", ["Two weeks off"])
    assert not repeats("Warm welcome to guests", ["Thanks to the guests"])


def test_others_have_their_turn_after_each_run_of_the_model(words):
    runs = 0

    def feed(start: int, tokens):
        nonlocal runs
        runs += 1
        yield
        return np.random.default_rng(runs).normal(size=words.never.size).astype(np.float32)

    runs_before = 0
    for _ in write_outline([1, 2, 3], feed, words):
        assert runs - runs_before <= 1
        runs_before = runs
    assert runs > 20


def test_an_instruction_that_leaves_no_room_is_refused(client):
    with pytest.raises(CloudContextFullError):
        sketch(client, "beach " * 900)
