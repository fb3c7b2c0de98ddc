"""Trains a retriever selector by what each retriever's answer was worth, and selects with it (RSPG)."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from export.progress import Progress
from personalization.errors import SettingsError
from personalization.retrievers.losses import distillation_loss
from personalization.retrievers.selector import Selector
from personalization.retrievers.selector_data import Selection, SelectionQuestion
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from personalization.training.trained_model import Trained, train_into


class SelectorObjective:
    """Score highest what is worth most; see `personalization.training.fine_tuning.Objective`."""

    def __init__(self, selector: Selector, training: Selection, judging: Selection | None, temperature: float) -> None:
        self.module: torch.nn.Module = selector.module
        self._selector, self._temperature = selector, temperature
        self._training = training.questions
        self._judging = () if judging is None else judging.questions
        self.count, self.held_out = len(self._training), len(self._judging)

    def loss(self, index: int, draw: random.Random) -> torch.Tensor:  # noqa: ARG002 (protocol)
        """See `Objective.loss`."""
        question = self._training[index]
        scores = _scores(self._selector, question)
        gains = torch.tensor([answer.gain for answer in question.answers]).to(scores)
        return distillation_loss(scores, gains, self._temperature)

    def gain(self, index: int) -> float:
        """See `Objective.gain`: what the answer is worth that is scored highest."""
        question = self._judging[index]
        return question.answers[int(_scores(self._selector, question).argmax())].gain


def train_selector(
    selector: Selector,
    out: Path,
    training: Selection,
    judging: Selection | None,
    settings: TuningSettings,
    team: Team,
    *,
    force: bool,
    progress: Progress,
) -> Trained:
    """Train a selector and write its directory.

    Args:
        selector: untrained, made for the pool of `training`.
        out: the directory.
        training: to learn from.
        judging: other questions, by which the best epoch is told; None: the last is kept.
        settings: how to train.
        team: with whom.
        force: replace what was trained otherwise.
        progress: called after each step.

    Raises:
        SettingsError: both data are of different pools.
        PersonalizationError: see `train_into`.
        ExportError: `out` can't be written.
    """
    if judging is not None:
        check_pool(selector, judging)
    objective = SelectorObjective(selector, training, judging, settings.temperature)
    origin = {
        "kind": f"rspg-{selector.card.mode}",
        "max_tokens": selector.card.max_tokens,
        "data": training.digest,
        "judging_data": "" if judging is None else judging.digest,
    }
    return train_into(out, objective, settings, team, origin, selector.save, force=force, progress=progress)


def select(selector: Selector, selection: Selection, progress: Progress) -> list[int]:
    """The index of the best retriever for each question.

    Raises:
        SettingsError: the selector is of another pool.
    """
    check_pool(selector, selection)
    choices = []
    with torch.inference_mode():
        for done, question in enumerate(selection.questions, start=1):
            choices.append(int(_scores(selector, question).argmax()))
            progress("Selecting", done, len(selection.questions))
    return choices


def check_pool(selector: Selector, selection: Selection) -> None:
    """Check that data are of the pool that a selector is for.

    Raises:
        SettingsError: they are not.
    """
    ours, theirs = selector.card.retrievers, selection.retrievers
    if ours != theirs:
        raise SettingsError(
            f"The data is of the pool {', '.join(theirs)}, the selector of {', '.join(ours)}. Make the data of the "
            "same retrievers, in the same order."
        )


def _scores(selector: Selector, question: SelectionQuestion) -> torch.Tensor:
    return selector.scores([selector.tokens(answer.prompt, answer.output) for answer in question.answers])
