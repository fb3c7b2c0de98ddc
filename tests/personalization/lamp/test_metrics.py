"""LaMP's metrics against rouge_score and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

from personalization.errors import DataError
from personalization.lamp.metrics import gain, mean_scores, metrics_of, sample_scores
from personalization.lamp.tasks import LAMP_TASKS
from personalization.measures.rouge import longest_common_subsequence

LABELS = ["LaMP-1", "LaMP-2", "LaMP-2-news"]
TEXTS = ["LaMP-4", "LaMP-5", "LaMP-6", "LaMP-7"]
RATING = LAMP_TASKS["LaMP-3"]
ROUGE = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
# Kelvin sign and dotted I become ASCII letters, or not, where text is lower-cased.
WORDS = st.sampled_from(
    ["The", "cat", "cats", "sat", "on", "3.14", "naïve", "K", "İ", "\u017f", "_", "--", "漢字", "\x00", "٣"]
)
LINE = st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=30)


@given(st.lists(st.tuples(LINE, LINE), min_size=1, max_size=5), st.sampled_from(TEXTS))
@example([("", "")], "LaMP-4")
@example([("a b a", "a a b"), ("x", "")], "LaMP-7")
def test_texts_are_scored_as_rouge_score_scores_them(pairs, name):
    task = LAMP_TASKS[name]
    expected = [ROUGE.score(gold.strip(), predicted.strip()) for gold, predicted in pairs]
    found = mean_scores(task, pairs)
    for ours, theirs in (("rouge-1", "rouge1"), ("rouge-l", "rougeL")):
        each = [scores[theirs].fmeasure for scores in expected]
        assert [sample_scores(task, *pair)[ours] for pair in pairs] == pytest.approx(each, abs=1e-12)
        assert found[ours] == pytest.approx(np.mean(each), abs=1e-12)
    assert gain(task, *pairs[0]) == sample_scores(task, *pairs[0])["rouge-1"]


@given(st.lists(st.integers(0, 3), max_size=90), st.lists(st.integers(0, 3), max_size=90))
def test_the_longest_common_subsequence_is_that_of_the_textbook(one, other):
    lengths = [[0] * (len(other) + 1)]
    for left in one:
        row = [0]
        for place, right in enumerate(other):
            row.append(lengths[-1][place] + 1 if left == right else max(row[-1], lengths[-1][place + 1]))
        lengths.append(row)
    assert longest_common_subsequence(list(map(str, one)), list(map(str, other))) == lengths[-1][-1]


@pytest.mark.parametrize("name", LABELS)
@given(data=st.data())
def test_labels_are_scored_as_scikit_learn_scores_them(name, data):
    task = LAMP_TASKS[name]
    answers = st.sampled_from([*task.labels, "nonsense", "", task.labels[0].upper(), f" {task.labels[1]}\n"])
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(task.labels), answers), min_size=1, max_size=30))
    classes = {label: number for number, label in enumerate(task.labels)}
    golds = [classes[gold] for gold, _ in pairs]
    predicted = [classes.get(answer.strip(), -1) for _, answer in pairs]
    found = mean_scores(task, pairs)
    assert found["accuracy"] == pytest.approx(accuracy_score(golds, predicted), abs=1e-12)
    expected = f1_score(golds, predicted, labels=range(len(classes)), average="macro", zero_division=0)
    assert found["f1"] == pytest.approx(expected, abs=1e-12)
    right = [float(gold == answer) for gold, answer in zip(golds, predicted, strict=True)]
    assert [sample_scores(task, *pair) for pair in pairs] == [{"accuracy": one} for one in right]
    assert [gain(task, *pair) for pair in pairs] == right


RATINGS = st.one_of(
    st.integers(-3, 9).map(str),
    st.floats(-1e6, 1e6).map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e999", "four", "", "4 stars", "5.", " 2 ", "\uff11"]),
)


@given(st.lists(st.tuples(st.integers(1, 5), RATINGS), min_size=1, max_size=30))
def test_ratings_are_scored_as_scikit_learn_scores_them(pairs):
    def meant(gold, answer):
        try:
            number = float(answer)
        except ValueError:
            number = math.nan
        return number if math.isfinite(number) else (1 if gold > 3 else 5)

    golds = [gold for gold, _ in pairs]
    predicted = [meant(*pair) for pair in pairs]
    answers = [(str(gold), answer) for gold, answer in pairs]
    found = mean_scores(RATING, answers)
    assert found["mae"] == pytest.approx(mean_absolute_error(golds, predicted), rel=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt(mean_squared_error(golds, predicted)), rel=1e-12)
    errors = [abs(gold - number) for gold, number in zip(golds, predicted, strict=True)]
    assert [sample_scores(RATING, *pair)["mae"] for pair in answers] == pytest.approx(errors)


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [("5", "5", 1.0), ("5", "1", 0.0), ("5", "4", 0.75), ("3", "4", 0.5), ("3", "none", 0.0), ("1", "9", -1.0)],
)
def test_the_gain_of_a_rating_is_what_the_worst_rating_would_lose(gold, answer, expected):
    assert gain(RATING, gold, answer) == expected


def test_a_number_too_large_to_be_squared_is_no_rating():
    assert mean_scores(RATING, [("2", "1e200"), ("2", "-1e308")]) == {"mae": 3.0, "rmse": 3.0}


def test_the_main_metric_comes_first_and_says_which_way_is_better():
    found = {
        name: [(m.name, m.lower_is_better) for m in metrics_of(task).values()] for name, task in LAMP_TASKS.items()
    }
    assert found["LaMP-1"] == found["LaMP-2"] == [("accuracy", False), ("f1", False)]
    assert found["LaMP-3"] == [("mae", True), ("rmse", True)]
    assert found["LaMP-7"] == [("rouge-1", False), ("rouge-l", False)]


@pytest.mark.parametrize(
    ("name", "gold"), [("LaMP-1", "[3]"), ("LaMP-2", "sports"), ("LaMP-3", "six"), ("LaMP-3", "0")]
)
def test_a_gold_of_another_task_is_refused(name, gold):
    with pytest.raises(DataError, match=f"not an answer of {name}"):
        sample_scores(LAMP_TASKS[name], gold, "5")
