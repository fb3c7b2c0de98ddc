"""The P/K/T schedule against its published formula; the learned one keeps to its share, and to what is worth most."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import RequestError
from edge_runtime.generation.schedule import AHEAD, Decision, LearnedSchedule, Schedule, parse_schedule


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 200))
def test_it_asks_where_the_formula_says(p, k, t, step):
    if k + t == 0:
        return
    assert Schedule(p, k, t).asks(step) == (step < p or (step - k - 1) % (k + t) < t)


def test_the_default_asks_always():
    assert all(Schedule().asks(step) for step in range(100))


def test_it_is_read_from_three_numbers():
    assert Schedule.parse("8, 4,2") == Schedule(8, 4, 2)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "1,-2,3", "0,0,0", "1.5,2,3"])
def test_anything_else_is_refused(text):
    with pytest.raises(RequestError):
        Schedule.parse(text)


WORTHS = st.lists(st.floats(-1.0, 5.0), max_size=150)


def decided(worths: list[float], share: float | None, threshold: float = 0.0) -> list[Decision]:
    schedule, decisions = LearnedSchedule(share=share), []
    for worth in worths:
        decisions.append(schedule.decide_by(worth, threshold, decisions))
    return decisions


@given(WORTHS, st.floats(0.01, 1.0))
def test_a_share_is_kept_to_at_every_step_whatever_the_worth(worths, share):
    asked = np.cumsum([one.asks for one in decided(worths, share)])
    assert (asked < share * np.arange(1, len(worths) + 1) + AHEAD + 1).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_share_is_spent_where_most_is_expected_however_much_that_is(share, scale):
    worths = np.random.default_rng(0).gumbel(size=2000) * scale - 7.0
    asked = np.array([one.asks for one in decided(worths.tolist(), share)])
    assert asked.mean() == pytest.approx(share, abs=0.02)
    best = worths >= np.quantile(worths, 1 - share)
    assert asked[best].mean() > 0.75
    assert asked[~best].mean() < 0.25


def test_all_is_asked_with_a_share_of_all_and_by_the_threshold_without_one():
    worths = [0.1, 0.5, 0.3, 0.5]
    assert [one.asks for one in decided(worths, 1.0)] == [True] * 4
    assert [one.asks for one in decided(worths, None, threshold=0.4)] == [False, True, False, True]


def test_both_kinds_are_read_by_their_names():
    assert parse_schedule("1,2,3") == Schedule(1, 2, 3)
    assert parse_schedule(" learned ") == LearnedSchedule()
    assert parse_schedule("learned:0.25") == LearnedSchedule(share=0.25)


@pytest.mark.parametrize(
    "text", ["learned:", "learned:0", "learned:1.5", "learned:nan", "learned:a", "learnt", "learned,1"]
)
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(RequestError, match="schedule"):
        parse_schedule(text)
