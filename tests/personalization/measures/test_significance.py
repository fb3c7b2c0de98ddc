"""Paired tests against scipy's, and by what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from personalization.lamp.metrics import metrics_of, statistics
from personalization.lamp.tasks import LAMP_TASKS
from personalization.measures import significance
from personalization.measures.significance import compare_systems

MEAN = {"mean": lambda means: means[..., 0]}


def column(values):
    return np.array(values, dtype=np.float64)[:, None]


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
def test_the_p_value_is_that_of_scipys_permutation_test(shift):
    rng = np.random.default_rng(3)
    one = rng.random(60)
    other = one + rng.normal(shift, 0.2, 60)
    found = compare_systems(column(one), column(other), MEAN)["mean"]
    expected = stats.permutation_test(
        (one, other), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=10_000, rng=rng
    )
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    assert found.difference == pytest.approx(np.mean(one - other))


def test_for_right_and_wrong_answers_it_is_mcnemars_exact_test():
    one = np.array([1] * 30 + [0] * 9 + [1] * 20 + [0] * 15)
    other = np.array([0] * 30 + [1] * 9 + [1] * 20 + [0] * 15)
    # Of 39 answers that only one of them has right, 9 are the other's.
    expected = stats.binomtest(9, 39).pvalue
    assert compare_systems(column(one), column(other), MEAN)["mean"].p == pytest.approx(expected, abs=5e-4)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    rng = np.random.default_rng(5)
    one, other = rng.random(80), rng.random(80) ** 2
    found = compare_systems(column(one), column(other), MEAN)["mean"]
    expected = stats.bootstrap((one - other,), np.mean, method="percentile", rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)
    assert found.low < found.difference < found.high


def test_f1_is_tested_as_it_would_be_by_exchanging_answers_and_counting_again():
    task, rng = LAMP_TASKS["LaMP-1"], np.random.default_rng(7)
    golds = rng.choice(task.labels, 40)
    answers = [np.where(rng.random(40) < right, golds, "[1]") for right in (0.9, 0.5)]

    def f1(predicted):
        hits = [np.sum((golds == label) & (predicted == label)) for label in task.labels]
        marked = [np.sum(golds == label) + np.sum(predicted == label) for label in task.labels]
        return np.mean([2 * hit / mark for hit, mark in zip(hits, marked, strict=True)])

    assert f1(answers[0]) == pytest.approx(f1_score(golds, answers[0], average="macro"))
    seen, exceeded = abs(f1(answers[0]) - f1(answers[1])), 0
    for _ in range(1000):
        swapped = rng.random(40) < 0.5
        pair = np.where(swapped, answers[1], answers[0]), np.where(swapped, answers[0], answers[1])
        exceeded += abs(f1(pair[0]) - f1(pair[1])) >= seen - 1e-12
    systems = [np.array([statistics(task, *pair) for pair in zip(golds, each, strict=True)]) for each in answers]
    found = compare_systems(*systems, {"f1": metrics_of(task)["f1"].score})["f1"]
    assert found.score == pytest.approx(f1(answers[0]))
    assert found.p == pytest.approx((1 + exceeded) / 1001, abs=0.03)


def test_a_system_is_no_better_than_itself():
    values = column(np.random.default_rng(1).random(50))
    found = compare_systems(values, values, MEAN)["mean"]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_smallest_p_value_is_that_of_the_number_of_resamples():
    found = compare_systems(column(np.ones(50)), column(np.zeros(50)), MEAN, resamples=999)["mean"]
    assert found.p == 1 / 1000


def test_the_result_depends_on_the_seed_alone_not_on_how_much_is_done_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    pair = column(rng.random(30)), column(rng.random(30))
    found = compare_systems(*pair, MEAN, seed=4)
    assert compare_systems(*pair, MEAN, seed=4) == found
    assert compare_systems(*pair, MEAN, seed=5) != found
    monkeypatch.setattr(significance, "_CELLS_AT_ONCE", 64)
    again = compare_systems(*pair, MEAN, seed=4)["mean"]
    assert again.p == pytest.approx(found["mean"].p, abs=0.03)
