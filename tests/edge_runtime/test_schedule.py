"""The P/K/T schedule against its published formula."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import RequestError
from edge_runtime.schedule import Schedule


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
