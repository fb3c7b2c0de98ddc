"""Measures of answers say what outside judges say, and tell what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from personalization.collab.evaluation.answers import CollabAnswer
from personalization.collab.evaluation.measures import AnswerMeasures
from personalization.collab.evaluation.private_recall import PrivateFacts
from personalization.collab.records.records import CollabRecord
from personalization.measures.by_user import Measured, Sum, compare_by_user, means
from personalization.measures.style_similarity import StyleSpace

TEXTS = (
    "The harbour was quiet and the boats lay where we had left them, and nobody spoke of the storm.",
    "Look! Look at that! Isn't it great? You are going to love it, and so will your friends, I promise you.",
    "We present a method for the indexing of data. The method is evaluated on the data of a large archive.",
    "In the morning I walked to the mill, and in the evening I walked back, and that was all that I did.",
)
CONTEXT = PrivateContext(
    "Name: Isabel Martinez\nPrivacy_info: Owns a sailing boat named Quixote; born in 1976",
    (HistoryItem("A letter", TEXTS[0]),),
)
INSTRUCTION = PublicInstruction("Write an invitation to a dinner")
REFERENCE = "Dear friends, dine with me aboard Quixote, as in 1976. Yours, Isabel"


def record(reference=REFERENCE, identity="1", user="1_1"):
    return CollabRecord(identity, user, INSTRUCTION, INSTRUCTION.text, CONTEXT, reference)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3), st.text(alphabet="abc the of. ", max_size=60))
def test_style_is_the_cosine_of_standardised_word_shares(own, text):
    vectorizer = CountVectorizer(token_pattern=r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
    counts = vectorizer.fit_transform(TEXTS).toarray()
    sizes = counts.sum(axis=1, keepdims=True)
    scaler = StandardScaler().fit(counts / sizes)

    def scores(one):
        found = vectorizer.transform([one]).toarray()[0]
        words = len(vectorizer.build_tokenizer()(one.lower()))
        return scaler.transform([found / words])[0] if words else np.zeros_like(found)

    expected = cosine_similarity([scores(text)], [np.mean([scores(one) for one in own], axis=0)])[0, 0]
    assert StyleSpace(TEXTS, words=10_000).similarity(text, own) == pytest.approx(expected, abs=1e-9)


def test_a_text_is_most_like_its_own_author():
    space = StyleSpace(TEXTS)
    ours = "The mill was quiet and the friends lay where we had left them, and nobody walked in the evening."
    assert max(TEXTS, key=lambda text: space.similarity(ours, [text])) == TEXTS[0]
    assert space.similarity(TEXTS[1], [TEXTS[1]]) == pytest.approx(1.0)


def test_private_facts_are_those_that_the_reference_tells_and_the_instruction_does_not():
    facts = PrivateFacts(CONTEXT, INSTRUCTION, REFERENCE)
    assert len(facts) == 3
    assert facts.told(REFERENCE) == 3
    assert facts.told("Isabel's boat is called QUIXOTE.") == 2
    assert facts.told("Dear friends, do dine with me aboard my boat.") == 0
    assert len(PrivateFacts(CONTEXT, PublicInstruction("Isabel invites to Quixote in 1976"), REFERENCE)) == 0


def test_an_answer_is_measured_against_its_reference_and_a_reference_is_all_that_can_be_reached():
    measures = AnswerMeasures([record()])
    answer = CollabAnswer("Friends, dine with Isabel.", tokens=8, seconds=2.0, round_trips=3, fused_tokens=4)
    ours, best = means(measures.of_answers([answer])), means(measures.of_references())
    scored = RougeScorer(["rouge1", "rougeL"]).score(REFERENCE, answer.text)
    assert ours["rouge-1"] == pytest.approx(scored["rouge1"].fmeasure)
    assert ours["rouge-l"] == pytest.approx(scored["rougeL"].fmeasure)
    assert (ours["private facts"], ours["words"], ours["seconds"]) == (pytest.approx(1 / 3), 4, 2.0)
    assert (ours["round trips"], ours["fused"]) == (3, 0.5)
    assert best["rouge-1"] == best["rouge-l"] == best["private facts"] == 1.0


def test_users_not_records_are_resampled():
    rng = np.random.default_rng(0)
    users = [f"user-{index % 12}" for index in range(60)]
    of_user = {user: rng.normal() for user in users}
    ours = [Measured(user, {"nll": Sum(rng.normal(of_user[user], 0.1) * 50, 50)}) for user in users]
    theirs = [Measured(user, {"nll": Sum(0.0, 50)}) for user in users]
    found = compare_by_user(ours, theirs)["nll"]
    totals = [sum(one.sums["nll"].total for one in ours if one.user == user) for user in of_user]
    weights = [50.0 * users.count(user) for user in of_user]

    def ratio(total, weight, axis=-1):
        return np.sum(total, axis=axis) / np.sum(weight, axis=axis)

    outside = bootstrap(
        (totals, weights),
        ratio,
        paired=True,
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference == pytest.approx(sum(totals) / sum(weights))
    assert (found.low, found.high) == (pytest.approx(outside.low, abs=0.03), pytest.approx(outside.high, abs=0.03))
    assert found.high - found.low > 0.5  # 60 independent records would have half of that


def test_a_ratio_without_weight_is_nothing_not_an_error():
    one = [Measured("a", {"facts": Sum(0, 0)}), Measured("b", {"facts": Sum(0, 0)})]
    assert means(one) == {"facts": 0.0}
    assert compare_by_user(one, one)["facts"].difference == 0.0
