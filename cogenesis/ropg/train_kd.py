"""`cogenesis ropg train-kd`: distils the feedback on profile items into a retriever."""

from __future__ import annotations

from cogenesis.options.expand import expand
from cogenesis.options.training import SoftmaxTemperatureOption, TrainingOptions
from cogenesis.ropg.retriever_training import LessonOptions, train


@expand
def train_kd(
    lesson: LessonOptions,
    training: TrainingOptions,
    softmax_temperature: SoftmaxTemperatureOption = 1.0,
) -> None:
    """Distil the feedback on profile items into a retriever (ROPG-KD).

    The result is a directory for `cogenesis lamp rank --ranker`. An interrupted run resumes. Several processes can
    train together: start them with `accelerate launch -m cogenesis ropg train-kd ...` or `torchrun`.

    Example:
      cogenesis ropg train-kd --task LaMP-5 --questions merged.json --feedback items.json --encoder contriever -o kd
    """
    train("kd", lesson, training.tuning(temperature=softmax_temperature), training)
