"""`cogenesis ropg train-rl`: trains a retriever by reinforcement learning on the feedback for sampled items."""

from __future__ import annotations

from cogenesis.options.expand import expand
from cogenesis.options.training import TrainingOptions
from cogenesis.ropg.retriever_training import LessonOptions, train


@expand
def train_rl(lesson: LessonOptions, training: TrainingOptions) -> None:
    """Train a retriever by reinforcement learning on the feedback for sampled items (ROPG-RL).

    For each question the training samples an item from the softmax of the scores. The more its feedback exceeds that of
    the top-ranked item, the more likely the item becomes. The result, resuming and several processes work as in
    `train-kd`.

    Example:
      cogenesis ropg train-rl --task LaMP-5 --questions merged.json --feedback items.json --encoder contriever -o rl
    """
    train("rl", lesson, training.tuning(), training)
