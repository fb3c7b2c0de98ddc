"""Each way to rank profiles, against a plain calculation."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from rank_bm25 import BM25Okapi
from transformers import AutoModel, AutoTokenizer

from edge_runtime.retrieval.rank_fusion import alternate, reciprocal_rank_scores
from edge_runtime.store.bm25 import best_first
from personalization.errors import DataError, PersonalizationError, SettingsError
from personalization.lamp.questions import ProfileItem, Question
from personalization.lamp.rankers import RankerName, ranker_of, searched
from personalization.lamp.tasks import LAMP_TASKS
from personalization.models.text_encoder import Encoder
from tests.support.tiny_encoders import FILLERS, make_encoder

TWEETS = LAMP_TASKS["LaMP-7"]
DATES = ("2020-01-30", "2021-2-1", "1999-12-31", "2021-02-01", "2020-1-4")


def asked(number, dates=DATES):
    rng = np.random.default_rng(number)
    texts = [" ".join(rng.choice(FILLERS, 4)) for _ in DATES]
    items = [
        ProfileItem(str(place), {"text": text, "date": date})
        for place, (text, date) in enumerate(zip(texts, dates, strict=True))
    ]
    question = Question(str(number), f"Paraphrase: {' '.join(rng.choice(FILLERS, 3))}", tuple(items), "user")
    return searched(TWEETS, question)


QUESTIONS = [asked(number) for number in range(4)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def encoder(directory):
    return Encoder.load(directory)


def orders(name, encoder=None, questions=QUESTIONS, **options):
    rank = ranker_of(name, encoder=encoder, **{"batch": 3, "seed": 0} | options)
    return [order.tolist() for order in rank(questions)]


def dense_scores(directory, question):
    """Mean of the last hidden states, one text at a time, and dot products."""
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        query, *documents = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in (question.query, *question.documents)
        ]
    return torch.stack(documents).double() @ query.double()


def test_words_are_ranked_as_rank_bm25_scores_them():
    for question, order in zip(QUESTIONS, orders(RankerName.BM25), strict=True):
        scores = BM25Okapi([text.split() for text in question.documents]).get_scores(question.query.split())
        assert sorted(order) == list(range(5))
        np.testing.assert_allclose(scores[order], sorted(scores, reverse=True), rtol=1e-12)


def test_meanings_are_ranked_by_the_dot_product_of_mean_hidden_states(directory, encoder):
    for question, order in zip(QUESTIONS, orders(RankerName.DENSE, encoder), strict=True):
        assert order == torch.argsort(dense_scores(directory, question), descending=True).tolist()


def test_a_real_encoder_finds_what_shares_no_word(minilm):
    texts = ("Interest rates rise again", "A puppy howled until dawn", "We ate pasta by candle light")
    items = tuple(ProfileItem(str(place), {"text": text}) for place, text in enumerate(texts))
    question = searched(TWEETS, Question("1", "Paraphrase: my neighbour's dog barks all night", items, "user"))
    assert not set(question.query.split()) & {word for text in texts for word in text.split()}
    assert orders(RankerName.DENSE, Encoder.load(minilm), [question])[0][0] == 1


def test_the_newest_comes_first_and_of_one_day_the_later():
    assert orders(RankerName.RECENCY)[0] == [3, 1, 0, 4, 2]


def test_chance_depends_on_seed_and_question_alone():
    alone = [orders(RankerName.RANDOM, questions=[question])[0] for question in QUESTIONS]
    assert alone == orders(RankerName.RANDOM)
    assert alone != orders(RankerName.RANDOM, seed=1)
    assert len(set(map(tuple, alone))) > 1


def test_hybrid_fuses_the_ranks_of_words_and_meanings(encoder):
    pairs = zip(orders(RankerName.BM25), orders(RankerName.DENSE, encoder), strict=True)
    fused = [best_first(reciprocal_rank_scores(list(map(np.array, pair)))).tolist() for pair in pairs]
    assert orders(RankerName.HYBRID, encoder) == fused


def test_mixed_takes_newest_and_nearest_in_turn(encoder):
    pairs = zip(orders(RankerName.RECENCY), orders(RankerName.DENSE, encoder), strict=True)
    assert orders(RankerName.MIXED, encoder) == [alternate(*map(np.array, pair)).tolist() for pair in pairs]


@pytest.mark.parametrize("name", RankerName)
def test_an_empty_profile_is_an_empty_ranking(name, encoder):
    question = searched(TWEETS, Question("1", "Paraphrase: word1", (), "user"))
    assert orders(name, encoder, [question, QUESTIONS[0]])[0] == []


@pytest.mark.parametrize("date", ["2020-02-30", "2020-01", "0000", "3", "yesterday", "2020-01-01 12:00", ""])
def test_what_is_no_date_is_named(date):
    with pytest.raises(DataError, match="Item '0' of question '7' has a date that is not of the form Y-M-D"):
        orders(RankerName.RECENCY, questions=[asked(7, (date, *DATES[1:]))])


def test_a_year_alone_is_its_first_day():
    dates = ("2010", "2009-12-31", "2010-01-02", "2010-1-1", "1999")
    assert orders(RankerName.RECENCY, questions=[asked(7, dates)]) == [[2, 3, 0, 1, 4]]


def test_an_item_without_a_date_is_named():
    question = Question("q", "Paraphrase: x", (ProfileItem("i", {"text": "x"}),), "user")
    with pytest.raises(DataError, match=r"Item 'i' of question 'q' has no 'date'. Choose a `ranker`"):
        orders(RankerName.RECENCY, questions=[searched(TWEETS, question)])
    with pytest.raises(DataError, match="Item 'i' of question 'q' has no 'date'"):
        searched(TWEETS, question, use_date=True)


def test_dates_are_searched_where_that_is_asked_for():
    found = searched(TWEETS, QUESTIONS[0].question, use_date=True)
    assert [re.sub(r".* date: ", "", text) for text in found.documents] == list(DATES)


def test_a_question_of_another_task_is_named():
    with pytest.raises(DataError, match=r"Question '0' is not one of LaMP-2: the input has no 'description:'"):
        searched(LAMP_TASKS["LaMP-2"], QUESTIONS[0].question)


@pytest.mark.parametrize("name", [RankerName.DENSE, RankerName.HYBRID, RankerName.MIXED])
def test_a_ranker_by_meaning_wants_an_encoder(name):
    with pytest.raises(SettingsError, match="needs an encoder"):
        orders(name)


def test_an_encoder_that_gives_no_numbers_is_refused(directory):
    broken = Encoder.load(directory)
    with torch.no_grad():
        next(broken.pooling.parameters()).fill_(float("nan"))
    with pytest.raises(PersonalizationError, match="scores for question '0' are not finite"):
        orders(RankerName.DENSE, broken)
