"""Trains a retriever by what its items were worth to a language model: ROPG-KD and ROPG-RL (Salemi et al., 2024)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path

import torch

from export.progress import Progress
from personalization.errors import TrainingError
from personalization.models.text_encoder import Encoder
from personalization.retrievers.examples import RetrieverExample
from personalization.retrievers.losses import distillation_loss, reinforce_loss
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from personalization.training.trained_model import Trained, train_into


class Method(StrEnum):
    """How the retriever learns from feedback: its whole distribution distilled, or one drawn item reinforced."""

    KD = "kd"
    RL = "rl"


class RetrieverObjective:
    """Put first what is worth most; see `personalization.training.fine_tuning.Objective`."""

    def __init__(
        self,
        encoder: Encoder,
        training: Sequence[RetrieverExample],
        judging: Sequence[RetrieverExample],
        method: Method,
        temperature: float,
    ) -> None:
        self.module: torch.nn.Module = encoder.pooling
        self._encoder, self._method, self._temperature = encoder, method, temperature
        self._training, self._judging = training, judging
        self.count, self.held_out = len(training), len(judging)

    def loss(self, index: int, draw: random.Random) -> torch.Tensor:
        """See `Objective.loss`; what is drawn is the item that is reinforced."""
        example = self._training[index]
        scores = self._scores(example)
        gains = torch.tensor(example.gains).to(scores)
        if self._method is Method.KD:
            return distillation_loss(scores, gains, self._temperature)
        odds = torch.softmax(scores.detach().double(), dim=0).tolist()
        return reinforce_loss(scores, gains, draw.choices(range(len(odds)), weights=odds)[0])

    def gain(self, index: int) -> float:
        """See `Objective.gain`: what the item is worth that is ranked first."""
        example = self._judging[index]
        return example.gains[int(self._scores(example).argmax())]

    def _scores(self, example: RetrieverExample) -> torch.Tensor:
        vectors = self._encoder.vectors((example.query, *example.documents))
        return vectors[1:] @ vectors[0]


def train_retriever(
    path: Path,
    out: Path,
    training: Sequence[RetrieverExample],
    judging: Sequence[RetrieverExample],
    method: Method,
    settings: TuningSettings,
    team: Team,
    *,
    force: bool,
    progress: Progress,
) -> Trained:
    """Train an encoder and write it as a model directory that ranks.

    Args:
        path: the encoder's directory.
        out: the trained encoder's.
        training: questions to learn from.
        judging: others, by which the best epoch is told; none: the last is kept.
        method: what is learnt from feedback.
        settings: how to train; the temperature is distillation's.
        team: with whom.
        force: replace what was trained otherwise.
        progress: called after each step.

    Raises:
        ExportError: the encoder can't be loaded, or `out` can't be written.
        PersonalizationError: there is nothing to learn from, or see `train_into`.
    """
    if not training:
        raise TrainingError("There is nothing to learn from: no question has two items with feedback.")
    encoder = Encoder.load(path, team.device)
    objective = RetrieverObjective(encoder, training, judging, method, settings.temperature)
    origin = {"kind": f"ropg-{method}", "data": _digest(training), "judging_data": _digest(judging)}
    return train_into(out, objective, settings, team, origin, encoder.save, force=force, progress=progress)


def _digest(examples: Sequence[RetrieverExample]) -> str:
    return hashlib.sha256(json.dumps([asdict(example) for example in examples]).encode()).hexdigest()
