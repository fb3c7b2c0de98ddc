"""Trains the learned schedule: what tells, from the edge's rows alone, what the cloud's row will be worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edge_runtime.fusion.combiner import Layer
from edge_runtime.fusion.edge_features import PROBES
from personalization.collab.combiner.net import CombinerNet, fit, mean_of, principal_directions
from personalization.collab.combiner.settings import CombinerSettings

# Probes are many and the rows few: what the network sees of them is held short in three ways.
_DIRECTIONS = 64
_DROPOUT = 0.5
_DECAY = 1.0
_EPOCHS = 60


@dataclass(frozen=True, eq=False, slots=True)
class TrainedSchedule:
    """A schedule.

    Attributes:
        hidden, out: the network of `Combiner.worth`.
        threshold: predicted worth from which the cloud is asked.
        asked: share of the judging rows at which it is.
    """

    hidden: Layer
    out: Layer
    threshold: float
    asked: float


def train_schedule(
    features: Sequence[torch.Tensor], worth: Sequence[torch.Tensor], settings: CombinerSettings
) -> TrainedSchedule:
    """Train the mean of a few networks to predict the worth, and find the threshold that keeps to the calls.

    Args:
        features: of the training rows and of the judging rows, (n, SCHEDULE_FEATURES).
        worth: of both, (n,), nats.
        settings: how, and at what share of the rows the cloud may be asked.
    """
    training, judging = features
    directions = _directions(training)
    nets = []
    for member in range(settings.members):
        torch.manual_seed(settings.seed + member)
        net = CombinerNet(training, settings.gain_hidden, worth[0].mean()[None], directions, _DROPOUT)

        def loss(net: CombinerNet, is_training: bool, chosen: torch.Tensor | slice) -> torch.Tensor:
            place = 0 if is_training else 1
            return (net(features[place][chosen])[:, 0] - worth[place][chosen]).square()

        fit(net, loss, len(training), settings, member, epochs=_EPOCHS, decay=_DECAY)
        nets.append(net)
    with torch.no_grad():
        predicted = torch.stack([net(judging)[:, 0] for net in nets]).mean(0)
    threshold = float(torch.quantile(predicted, 1.0 - settings.calls))
    return TrainedSchedule(*mean_of(nets), threshold, float((predicted >= threshold).float().mean()))


def _directions(features: torch.Tensor) -> torch.Tensor:
    """All that is no probe as it is, and the principal directions of the probes."""
    single = features.shape[1] - PROBES
    return torch.block_diag(torch.eye(single), principal_directions(features[:, single:], _DIRECTIONS))
