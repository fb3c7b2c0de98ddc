"""A judge is asked in both orders, and what it can't say is counted and asked again."""

from __future__ import annotations

import re

import pytest

from edge_runtime.context import PrivateContext, PublicInstruction
from personalization.answering.chat_endpoint import ChatEndpoint, EndpointError, EndpointRefusedError
from personalization.answering.checked_answers import EndpointSource, Sampler
from personalization.collab.evaluation.judge import JUDGE_TOKENS, Criterion, Pair, judge_pair, judge_pairs
from tests.support.chat_server import chat_server

TASK = PublicInstruction("Write a toast")
CONTEXT = PrivateContext("Name: Ada\nLocation: Oslo")


def pairs(count):
    return [Pair(TASK, CONTEXT, f"good text {number}", f"poor text {number}") for number in range(count)]


def source(server, **settings):
    endpoint = ChatEndpoint(server.url, "judge-model", **{"timeout": 5.0, "attempts": 1, **settings})
    return EndpointSource(endpoint, Sampler(JUDGE_TOKENS, 0.0), parallel=2)


def question(body):
    return body["messages"][0]["content"]


def biased(body):
    """A judge that likes good texts, and gives 2 more to what it reads first."""
    first = re.search(r"## First text\n(\w+)", question(body))[1]
    scores = (6 + 2, 3) if first == "good" else (3 + 2, 6)
    return f"The first is so, the second is so.\n[[{scores[0]}]] [[{scores[1]}]]"


def silent(done, total):
    assert done <= total


def test_a_judge_that_favours_what_comes_first_is_fair_in_the_mean():
    with chat_server(biased) as server:
        verdict = judge_pair(source(server), pairs(1)[0], Criterion.PUBLIC)
    assert (verdict.ours, verdict.theirs) == (7.0, 4.0)
    assert verdict.usage.calls == 2


@pytest.mark.parametrize("criterion", list(Criterion))
def test_only_criteria_of_the_user_show_the_judge_the_private_context(criterion):
    with chat_server(biased) as server:
        judge_pair(source(server), pairs(1)[0], criterion)
        asked = [question(request) for request in server.requests]
    assert len(asked) == 2
    assert all(TASK.text in one for one in asked)
    assert all(("Oslo" in one) == criterion.sees_context for one in asked)


@pytest.mark.parametrize("reply", ["Both are fine.", "[[7]]", "[[11]] [[3]]", "7 and 3"])
def test_a_reply_without_two_scores_is_asked_again_and_then_no_verdict(reply):
    with chat_server(lambda body: reply) as server:
        with pytest.raises(EndpointError, match="None of 3 answers"):
            judge_pair(source(server), pairs(1)[0], Criterion.PUBLIC)
        assert len(server.requests) == 3


def test_pairs_that_got_no_verdict_are_asked_again_by_the_next_run_and_no_others(tmp_path):
    some = pairs(4)

    def moody(body):
        return "no" if "text 2" in question(body) else biased(body)

    path = tmp_path / "judged.jsonl"
    with chat_server(moody) as server:
        first = judge_pairs(source(server), some, Criterion.PUBLIC, path, report=silent)
    assert [verdict is None for verdict in first] == [False, False, True, False]
    with chat_server(biased) as server:
        # Where the judge is, is no part of what it says.
        again = judge_pairs(source(server), some, Criterion.PUBLIC, path, report=silent)
        assert len(server.requests) == 2
    assert {(verdict.ours, verdict.theirs) for verdict in again} == {(7.0, 4.0)}


def test_an_endpoint_that_refuses_us_ends_the_run(tmp_path):
    with chat_server(biased) as server:
        server.faults += ["401"] * 8
        with pytest.raises(EndpointRefusedError):
            judge_pairs(source(server), pairs(2), Criterion.PUBLIC, tmp_path / "judged.jsonl", report=silent)
