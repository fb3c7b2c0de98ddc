"""Two rankings become one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.retrieval.rank_fusion import alternate, reciprocal_rank_scores
from edge_runtime.store.bm25 import best_first

PAIRS = st.integers(0, 12).flatmap(lambda size: st.tuples(*[st.permutations(range(size)).map(np.array)] * 2))


@given(PAIRS)
def test_a_text_scores_by_the_reciprocals_of_its_ranks(pair):
    pair = [ranking.astype(np.int64) for ranking in pair]
    scores = reciprocal_rank_scores(pair)
    expected = [sum(1 / (61 + list(ranking).index(place)) for ranking in pair) for place in range(len(pair[0]))]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_what_is_second_for_both_beats_what_is_first_for_one_and_last_for_the_other():
    rankings = [np.array([0, 1, 2, 3, 4, 5]), np.array([5, 1, 4, 3, 2, 0])]
    assert best_first(reciprocal_rank_scores(rankings))[0] == 1


@given(PAIRS)
def test_in_turn_means_that_half_of_any_beginning_is_each_ones_best(pair):
    one, other = (ranking.astype(np.int64) for ranking in pair)
    found = alternate(one, other).tolist()
    assert sorted(found) == list(range(len(one)))
    for turn, place in enumerate(found):
        ranking = (one, other)[turn % 2]
        assert place == next(best for best in ranking if best not in found[:turn])
