"""Trains the compact combiner (see `edge_runtime.fusion.combiner`) on a log-prob file: minutes on one core."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from edge_runtime.fusion.combiner import EXPERTS, OF_THE_EDGE, OUTPUTS, TOKEN_FEATURES, Combiner
from personalization.collab.combiner.net import CombinerNet, Curve, fit, mean_of
from personalization.collab.combiner.rows import combiner_rows
from personalization.collab.combiner.schedule_training import train_schedule
from personalization.collab.combiner.settings import CombinerSettings
from personalization.collab.logprobs.file import LogProbs

# An expert begins as one of these: both models' product, the edge, the cloud.
_BEGINNINGS = ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0))
_NOWHERE = -1e30


@dataclass(frozen=True, eq=False, slots=True)
class CombinerData:
    """Rows as tensors, float32; candidates are padded to `most`, the rest is each row's last that is not padding.

    Attributes:
        features: (n, inputs).
        alone: (n, SCHEDULE_FEATURES), what the edge tells alone.
        tokens: (n, TOKEN_FEATURES, most).
        padding: (n, most) bool.
        target: (n,) int64.
        offset: (n,).
    """

    features: torch.Tensor = field(repr=False)
    alone: torch.Tensor = field(repr=False)
    tokens: torch.Tensor = field(repr=False)
    padding: torch.Tensor = field(repr=False)
    target: torch.Tensor = field(repr=False)
    offset: torch.Tensor = field(repr=False)

    @classmethod
    def of(cls, rows: LogProbs, *, without: bool) -> CombinerData:
        """Read a file's rows.

        Raises:
            DataError: see `personalization.collab.combiner.rows.combiner_rows`.
        """
        found = list(combiner_rows(rows, without=without))
        sizes = np.array([row.candidates.edge.size for row in found])
        tokens = np.zeros((len(found), TOKEN_FEATURES, int(sizes.max())), np.float32)
        for place, row in enumerate(found):
            tokens[place, :, : sizes[place]] = row.candidates.tokens()
        return cls(
            torch.tensor(np.array([row.candidates.features(row.step) for row in found]), dtype=torch.float32),
            torch.tensor(np.array([row.of_edge for row in found]), dtype=torch.float32),
            torch.from_numpy(tokens),
            torch.from_numpy(np.arange(tokens.shape[2]) >= sizes[:, None]),
            torch.tensor([row.target for row in found]),
            torch.tensor([row.offset for row in found], dtype=torch.float32),
        )

    @property
    def size(self) -> int:
        """Rows."""
        return int(self.target.shape[0])


@dataclass(frozen=True, slots=True)
class TrainedCombiner:
    """A combiner, and how its training went; all in nats a row.

    Attributes:
        combiner: the mean of the members.
        calibrated: mean NLL of the judging rows where every row is fused alike, as well as that can be.
        curves: of each member, mean NLL of the training rows and of the judging rows, an epoch each.
        best: of each member, the epoch that was kept.
        asked: share of the judging rows at which the learned schedule asks.
    """

    combiner: Combiner
    calibrated: float
    curves: tuple[Curve, ...]
    best: tuple[int, ...]
    asked: float


def train_compact(
    training: LogProbs, judging: LogProbs, settings: CombinerSettings, progress: Callable[[str, int, int], None]
) -> TrainedCombiner:
    """Train on some users, keep what serves others best.

    First one set of weights for all rows is found (calibration); from there on networks learn what a row's features
    change about it. Each of the few members begins anew and reads the rows in another order: their mean errs less.

    Args:
        training: rows to learn from.
        judging: rows of other users, which tell the best epoch and the schedule's threshold.
        settings: how.
        progress: see `export.progress`.

    Raises:
        DataError: a file lacks what the combiner reads.
    """
    torch.set_num_threads(settings.threads)
    data = CombinerData.of(training, without=settings.without)
    held_out = CombinerData.of(judging, without=settings.without)
    begin = _calibrated(data)

    def loss(net: CombinerNet, is_training: bool, chosen: torch.Tensor | slice) -> torch.Tensor:
        rows = data if is_training else held_out
        return _fused_nll(net(rows.features[chosen]), rows, chosen)

    nets, curves, best = [], [], []
    for member in range(settings.members):
        torch.manual_seed(settings.seed + member)
        net = CombinerNet(data.features, settings.hidden, begin)
        curve, epoch = fit(net, loss, data.size, settings, member, epochs=settings.epochs, decay=settings.decay)
        nets.append(net)
        curves.append(curve)
        best.append(epoch)
        progress("Training the combiner", member + 1, settings.members)
    with torch.no_grad():
        outputs = [torch.stack([net(rows.features) for net in nets]).mean(0) for rows in (data, held_out)]
        worth = [_worth(said, rows) for said, rows in zip(outputs, (data, held_out), strict=True)]
    schedule = train_schedule((data.alone, held_out.alone), worth, settings)
    combiner = Combiner(
        training.about.edge_base,
        training.about.cloud,
        training.about.rows,
        settings.without,
        *mean_of(nets),
        schedule.hidden,
        schedule.out,
        schedule.threshold,
    )
    return TrainedCombiner(combiner, curves[0][0][1], tuple(curves), tuple(best), schedule.asked)


def _calibrated(data: CombinerData) -> torch.Tensor:
    """The outputs that serve all rows best where every row gets the same: (OUTPUTS,)."""
    outputs = torch.zeros(OUTPUTS)
    outputs[EXPERTS:].view(EXPERTS, TOKEN_FEATURES)[:, :2] = torch.tensor(_BEGINNINGS)
    outputs.requires_grad_(True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        # A little towards the middle: what the rows don't tell stays small.
        loss = _fused_nll(outputs.expand(data.size, -1), data, slice(None)).mean() + 1e-4 * outputs.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return outputs.detach()


def _mixed(outputs: torch.Tensor, data: CombinerData, chosen: torch.Tensor | slice) -> torch.Tensor:
    """What `Candidates.mix` computes, of many rows' (n, OUTPUTS): (n, most) log-probs, padding far below all."""
    tokens, padding = data.tokens[chosen], data.padding[chosen]
    scores = outputs[:, EXPERTS:].reshape(-1, EXPERTS, TOKEN_FEATURES) @ tokens
    experts = scores.masked_fill(padding[:, None], _NOWHERE).log_softmax(-1)
    mixed = torch.logsumexp(outputs[:, :EXPERTS].log_softmax(-1)[..., None] + experts, 1)
    edge = tokens[:, 0].masked_fill(padding, _NOWHERE)
    return torch.logaddexp(mixed + math.log1p(-OF_THE_EDGE), edge + math.log(OF_THE_EDGE))


def _fused_nll(outputs: torch.Tensor, data: CombinerData, chosen: torch.Tensor | slice) -> torch.Tensor:
    """Of the rows' reference tokens: (n,) nats."""
    fused = _mixed(outputs, data, chosen).gather(1, data.target[chosen][:, None])[:, 0]
    return -(fused + data.offset[chosen])


def _worth(outputs: torch.Tensor, data: CombinerData) -> torch.Tensor:
    """What fusion gains over the edge alone, if tokens come as it says: KL(fused || edge), (n,) nats.

    It has the same mean as the gain at the reference tokens where fusion is calibrated, and far less noise.
    """
    fused = _mixed(outputs, data, slice(None))
    difference = (fused - data.tokens[:, 0]).masked_fill(data.padding, 0.0)
    return (fused.exp() * difference).sum(1)
