"""BM25 against rank_bm25's BM25Okapi, score for score."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from edge_runtime.store.bm25 import best_first, tokenize
from personalization.lamp.bm25 import Bm25

WORDS = st.sampled_from(["the", "The", "garden", "roof,", "rain", "bees", "é", "漢字", "\x00", "-"])
SPACES = st.sampled_from([" ", "  ", "\n", "\t", "\u3000", "\xa0 ", "\x1c"])
TEXT = st.lists(st.tuples(WORDS, SPACES).map("".join), max_size=15).map("".join)


def reference(texts: list[str], query: str) -> np.ndarray:
    """Return rank_bm25's scores; it can't take texts without any word."""
    if not any(text.split() for text in texts):
        return np.zeros(len(texts))
    return BM25Okapi([text.split() for text in texts]).get_scores(query.split())


@given(st.lists(TEXT, max_size=12), TEXT)
@example(["the rain", "the roof", "the bees"], "the the rain")  # idf of "the" is negative
@example(["the", "the"], "the")  # so is the mean idf of all words
@example(["", "rain"], "rain")
@example([], "rain")
def test_scores_are_those_of_rank_bm25(texts, query):
    scores, expected = Bm25(texts).scores(query), reference(texts, query)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    order = Bm25(texts).rank(query)
    assert sorted(order) == list(range(len(texts)))
    assert all(expected[one] >= expected[other] - 1e-9 for one, other in pairwise(order))


@given(st.lists(st.text(max_size=20), max_size=8), st.text(max_size=20))
def test_any_texts_can_be_searched(texts, query):
    np.testing.assert_allclose(Bm25(texts).scores(query), reference(texts, query), rtol=1e-9, atol=1e-9)


def test_more_words_than_sixteen_bits_count():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 100_000, 2000))) for _ in range(60)]
    query = " ".join(map(str, rng.integers(0, 100_000, 300)))
    np.testing.assert_allclose(Bm25(texts).scores(query), reference(texts, query), rtol=1e-9)


def test_a_word_in_most_texts_can_make_a_text_worse_than_one_without_it():
    # Mean idf of the, of and rain in these four texts is negative.
    texts = ["the of", "the of", "the of rain", "rain"]
    assert Bm25(texts).scores("the")[0] < 0
    assert Bm25(texts).rank("the")[0] == 3


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, math.inf]), max_size=30))
def test_of_equal_scores_the_later_comes_first(scores):
    order = best_first(np.array(scores))
    assert list(order) == sorted(range(len(scores)), key=lambda place: (-scores[place], -place))


def test_real_profiles_are_ranked_as_rank_bm25_ranks_them(dataset):
    questions = dataset.read("lamp/LaMP_5/dev_questions.json")
    assert len(questions) == dataset.questions
    negative = 0
    for question in questions:
        texts = [f"{item['title']} {item['abstract']}" for item in question["profile"]]
        query = question["input"].split(":", 1)[1]
        expected = reference(texts, query)
        index = Bm25(texts)
        np.testing.assert_allclose(index.scores(query), expected, rtol=1e-9, atol=1e-9)
        ranked = [expected[place] for place in index.rank(query)]
        assert all(better >= worse - 1e-9 for better, worse in pairwise(ranked))
        in_most = [word for word in tokenize(query) if sum(word in text.split() for text in texts) > len(texts) / 2]
        negative += bool(in_most)
    assert negative == len(questions)  # each asks for a word whose idf is negative
