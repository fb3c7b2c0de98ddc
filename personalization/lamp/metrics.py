"""LaMP's metrics: what each answer gives, the score of all answers together, and the gain that retrieval learns from.

Every score here is a function of means over the samples, F1 as well. So one test of significance serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personalization.errors import DataError
from personalization.lamp.tasks import Judging, LampTask
from personalization.measures.rouge import rouge_1, rouge_l, rouge_words

Array = NDArray[np.float64]

_LOWEST, _HIGHEST = 1.0, 5.0
_LARGEST = 1e100
"""Numbers beyond it are none that somebody could mean by a rating, and their squares overflow."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One score.

    Attributes:
        name: "accuracy", "f1", "mae", "rmse", "rouge-1" or "rouge-l".
        lower_is_better: whether it is an error.
        columns: of the samples' statistics, those that the score needs.
        of_means: (..., len(columns)) float64, means over samples -> (...) scores.
    """

    name: str
    lower_is_better: bool
    columns: tuple[int, ...]
    of_means: Callable[[Array], Array]

    def score(self, means: Array) -> Array:
        """Scores of some means.

        Args:
            means: (..., all statistics) float64: means of samples' statistics.

        Returns:
            (...) float64.
        """
        return self.of_means(means[..., list(self.columns)])


def statistics(task: LampTask, gold: str, predicted: str) -> tuple[float, ...]:
    """What one answer gives to its task's metrics.

    Returns:
        Of a label: whether it is right, then for each label whether gold and answer are it, whether the answer is it,
        and whether the gold is it. Of a rating: absolute and squared error. Of a text: ROUGE-1 and ROUGE-L.

    Raises:
        DataError: the gold is not an answer of this task.
    """
    gold, predicted = gold.strip(), predicted.strip()
    if task.judging is Judging.TEXT:
        expected, found = rouge_words(gold), rouge_words(predicted)
        return rouge_1(expected, found), rouge_l(expected, found)
    if task.judging is Judging.RATING:
        error = abs(_rated(task, gold, predicted) - _stars(task, gold))
        return error, error * error
    if gold not in task.labels:
        raise _no_answer(task, gold)
    hits = [float(label == gold == predicted) for label in task.labels]
    answered = [float(label == predicted) for label in task.labels]
    expected_ones = [float(label == gold) for label in task.labels]
    return float(gold == predicted), *hits, *answered, *expected_ones


def sample_scores(task: LampTask, gold: str, predicted: str) -> dict[str, float]:
    """Scores of one answer alone: accuracy (0 or 1), or the absolute error as mae, or rouge-1 and rouge-l."""
    found = statistics(task, gold, predicted)
    names = {Judging.LABEL: ("accuracy",), Judging.RATING: ("mae",), Judging.TEXT: ("rouge-1", "rouge-l")}
    return dict(zip(names[task.judging], found, strict=False))


def gain(task: LampTask, gold: str, predicted: str) -> float:
    """What an answer is worth to whoever chose what the model was shown; higher is better, 1 is best.

    Accuracy of a label, ROUGE-1 of a text; of a rating (worst - error) / worst, where worst is the largest error that a
    rating of 1 to 5 could have made, so it falls below 0 only for numbers outside of the scale.

    Raises:
        DataError: the gold is not an answer of this task.
    """
    first = statistics(task, gold, predicted)[0]
    if task.judging is not Judging.RATING:
        return first
    rating = _stars(task, gold.strip())
    worst = max(rating - _LOWEST, _HIGHEST - rating)
    return (worst - first) / worst


def mean_scores(task: LampTask, answers: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Scores of all answers together, by the metric's name.

    Args:
        task: whose.
        answers: gold and predicted, at least one pair.

    Raises:
        DataError: a gold is not an answer of this task.
    """
    means = np.array([statistics(task, gold, predicted) for gold, predicted in answers]).mean(axis=0)
    return {name: float(metric.score(means)) for name, metric in metrics_of(task).items()}


def metrics_of(task: LampTask) -> Mapping[str, Metric]:
    """A task's metrics by name, the main one first."""
    if task.judging is Judging.LABEL:
        labels = len(task.labels)
        found = (
            Metric("accuracy", False, (0,), _first),
            Metric("f1", False, tuple(range(1, 1 + 3 * labels)), _macro_f1),
        )
    elif task.judging is Judging.RATING:
        found = (Metric("mae", True, (0,), _first), Metric("rmse", True, (1,), _root))
    else:
        found = (Metric("rouge-1", False, (0,), _first), Metric("rouge-l", False, (1,), _first))
    return {metric.name: metric for metric in found}


def _first(means: Array) -> Array:
    return means[..., 0]


def _root(means: Array) -> Array:
    root: Array = np.sqrt(means[..., 0])
    return root


def _macro_f1(means: Array) -> Array:
    """Mean over all labels of 2 hits / (answered + expected), 0 for a label that is neither."""
    hits, answered, expected = np.split(means, 3, axis=-1)
    marked = answered + expected
    each: Array = np.divide(2 * hits, marked, out=np.zeros_like(marked), where=marked > 0)
    mean: Array = each.mean(axis=-1)
    return mean


def _stars(task: LampTask, gold: str) -> float:
    try:
        rating = float(gold)
    except ValueError:
        raise _no_answer(task, gold) from None
    if not _LOWEST <= rating <= _HIGHEST:
        raise _no_answer(task, gold)
    return rating


def _rated(task: LampTask, gold: str, predicted: str) -> float:
    """The number that is meant; where none is, 1 or 5, whichever is further from the gold."""
    try:
        number = float(predicted)
    except ValueError:
        number = math.nan
    if abs(number) <= _LARGEST:
        return number
    rating = _stars(task, gold)
    return _LOWEST if rating - _LOWEST > _HIGHEST - rating else _HIGHEST


def _no_answer(task: LampTask, gold: str) -> DataError:
    return DataError(f"the gold '{gold[:40]}' is not an answer of {task.name}")
