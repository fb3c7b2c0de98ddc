"""Fine-tunes a language model on LaMP's questions with profile items in the prompt (Salemi et al., 2024, section 3)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from export.progress import Progress
from personalization.answering.token_counter import TokenizerCounter
from personalization.errors import DataError, SettingsError
from personalization.lamp.answers import Asked
from personalization.lamp.prompt import fit_prompt
from personalization.lamp.tasks import LampTask
from personalization.models.base_model import Base
from personalization.models.examples import Example
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from personalization.training.trained_model import Trained, save_model, train_into


@dataclass(frozen=True, slots=True)
class Lesson:
    """Something that is asked, and the gold output."""

    asked: Asked
    gold: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """Most tokens of a prompt, special ones and chat template not counted, and of an answer."""

    prompt: int
    answer: int


class AnswerObjective:
    """Make gold outputs likely; see `personalization.training.fine_tuning.Objective`."""

    def __init__(self, base: Base, training: Sequence[Example], judging: Sequence[Example]) -> None:
        base.train_whole()
        self.module: torch.nn.Module = base.model
        self._base, self._training, self._judging = base, training, judging
        self.count, self.held_out = len(training), len(judging)

    def loss(self, index: int, draw: random.Random) -> torch.Tensor:  # noqa: ARG002 (protocol)
        """See `Objective.loss`: the mean over the answer's tokens."""
        return self._mean(self._training[index])

    def gain(self, index: int) -> float:
        """See `Objective.gain`: the mean log-likelihood of the answer's tokens."""
        return -float(self._mean(self._judging[index]))

    def _mean(self, example: Example) -> torch.Tensor:
        return self._base.losses([example]).sum() / len(example.answer)


def train_model(
    model: Path,
    out: Path,
    task: LampTask,
    training: Sequence[Lesson],
    judging: Sequence[Lesson],
    lengths: Lengths,
    settings: TuningSettings,
    team: Team,
    *,
    force: bool,
    progress: Progress,
) -> Trained:
    """Fine-tune all weights of a model and write it as a model directory.

    Args:
        model: the model's directory.
        out: the trained model's.
        task: whose questions they are.
        training: questions to learn from.
        judging: others, by whose likelihood the best epoch is told; none: the last is kept.
        lengths: most tokens of a prompt and of an answer.
        settings: how to train.
        team: with whom.
        force: replace what was trained otherwise.
        progress: called after each step.

    Raises:
        ExportError: the model can't be loaded, or `out` can't be written.
        PersonalizationError: there is nothing to learn from, lengths and model don't fit, or see `train_into`.
    """
    if not training:
        raise DataError("There is nothing to learn from: the file has no questions.")
    base = Base(model, settings.threads, team.device)
    write = partial(_example, base, task, lengths)
    objective = AnswerObjective(base, [*map(write, training)], [*map(write, judging)])
    origin = {
        "kind": "lamp train",
        "task": task.name,
        "lengths": asdict(lengths),
        "data": _digest(training),
        "judging_data": _digest(judging),
    }
    save = partial(save_model, base.model, base.path)
    return train_into(out, objective, settings, team, origin, save, force=force, progress=progress)


def _example(base: Base, task: LampTask, lengths: Lengths, lesson: Lesson) -> Example:
    tokens = TokenizerCounter(base.writer.tokenizer)
    room = lengths.prompt - base.writer.added_tokens
    try:
        prompt = fit_prompt(task.prompt, lesson.asked.question, lesson.asked.items, tokens, room)
    except DataError as error:
        raise DataError(f"Question '{lesson.asked.id}': {error}.") from None
    example = base.writer.answered(prompt, lesson.gold, lengths.answer)
    if base.context_length is not None and example.length > base.context_length:
        raise SettingsError(
            f"Prompt and answer take {example.length:,} tokens, the model's context has {base.context_length:,}: "
            f"{base.path}. Lower --max-length or --max-new-tokens."
        )
    return example


def _digest(lessons: Sequence[Lesson]) -> str:
    digest = hashlib.sha256()
    for lesson in lessons:
        digest.update(json.dumps([lesson.asked.question, [*map(dict, lesson.asked.items)], lesson.gold]).encode())
    return digest.hexdigest()
