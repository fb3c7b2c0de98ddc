"""Ranking against rank_bm25."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Plus

from edge_runtime.text.relevance import rank, words

vocabulary = st.sampled_from(
    ["garden", "letter", "roof", "rain", "bees", "council", "meeting", "thanks", "invoice", "boat"]
)
document = st.lists(vocabulary, min_size=1, max_size=20).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(query=st.lists(vocabulary, max_size=6).map(" ".join), documents=st.lists(document, min_size=1, max_size=12))
def test_the_order_is_that_of_rank_bm25s_bm25_plus(query, documents):
    scores = BM25Plus([d.split() for d in documents], k1=1.5, b=0.75, delta=1).get_scores(query.split())
    order = rank(query, documents)
    assert sorted(order) == list(range(len(documents)))
    ranked = [float(scores[i]) for i in order]
    assert all(ahead >= behind - 1e-9 for ahead, behind in pairwise(ranked))


@settings(max_examples=200, deadline=None)
@given(query=st.text(max_size=30), documents=st.lists(st.text(max_size=30), max_size=8))
def test_any_texts_are_ranked_and_equal_ones_newest_first(query, documents):
    order = rank(query, documents)
    assert sorted(order) == list(range(len(documents)))
    doubled = rank(query, documents + documents)
    place = {index: position for position, index in enumerate(doubled)}
    assert all(place[i + len(documents)] < place[i] for i in range(len(documents)))


def test_without_a_common_word_the_newest_comes_first():
    assert rank("zebra", ["old one", "middle", "new"]) == [2, 1, 0]
    assert rank("", ["", ""]) == [1, 0]
    assert rank("anything", []) == []


def test_the_document_about_the_query_comes_first_even_where_all_share_its_common_words():
    documents = ["the roof leaks in the rain", "the garden in the rain", "the council in the rain"]
    assert rank("The roof, in the rain!", documents)[0] == 0


def test_words_are_case_folded_and_characters_of_unspaced_scripts_are_words():
    assert words("Straße, CAFÉ_x 12:30") == ["strasse", "café", "x", "12", "30"]
    assert words("花园 and 家") == ["花", "园", "and", "家"]
