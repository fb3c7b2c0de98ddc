"""Trains the compact combiner (see `edge_runtime.combiner`) on a log-prob file: minutes on one core."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from edge_runtime.combiner import (
    EXPERTS,
    OF_THE_EDGE,
    OUTPUTS,
    TOKEN_FEATURES,
    Combiner,
    Layer,
    Vector,
    schedule_features,
)
from personalization.combiner_rows import combiner_rows
from personalization.combiner_settings import CombinerSettings
from personalization.logprob_file import LogProbs

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
            DataError: see `personalization.combiner_rows.combiner_rows`.
        """
        found = list(combiner_rows(rows, without=without))
        sizes = np.array([row.candidates.edge.size for row in found])
        tokens = np.zeros((len(found), TOKEN_FEATURES, int(sizes.max())), np.float32)
        for place, row in enumerate(found):
            tokens[place, :, : sizes[place]] = row.candidates.tokens()
        return cls(
            torch.tensor(np.array([row.candidates.features(row.step) for row in found]), dtype=torch.float32),
            torch.tensor(
                [schedule_features(row.candidates.top, row.recent, row.step) for row in found], dtype=torch.float32
            ),
            torch.from_numpy(tokens),
            torch.from_numpy(np.arange(tokens.shape[2]) >= sizes[:, None]),
            torch.tensor([row.target for row in found]),
            torch.tensor([row.offset for row in found], dtype=torch.float32),
        )

    @property
    def size(self) -> int:
        """Rows."""
        return int(self.target.shape[0])


class _Net(nn.Module):
    """Standardised features through one hidden layer of tanh; in the beginning it says the same of every row."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, inputs: torch.Tensor, hidden: int, begin: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0).clamp(min=1e-3))
        self.hidden = nn.Linear(inputs.shape[1], hidden)
        self.out = nn.Linear(hidden, begin.shape[0])
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias.copy_(begin)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(torch.tanh(self.hidden((x - self.mean) / self.scale)))
        return result


def _mean_of(nets: Sequence[_Net]) -> tuple[Layer, Layer]:
    """The mean of several nets, which is one wider net, for numpy; the standardisation is in its first layer."""
    first = torch.cat([net.hidden.weight / net.scale for net in nets]).double().T
    begun = torch.cat([net.hidden.bias for net in nets]).double() - nets[0].mean.double() @ first
    second = torch.cat([net.out.weight for net in nets], 1).double().T / len(nets)
    ended = torch.stack([net.out.bias for net in nets]).double().mean(0)
    return Layer(_as_stored(first), _as_stored(begun)), Layer(_as_stored(second), _as_stored(ended))


def _as_stored(tensor: torch.Tensor) -> Vector:
    """As the file will give it back."""
    values: Vector = tensor.detach().float().double().numpy()
    return values


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

    def loss(net: _Net, rows: CombinerData, chosen: torch.Tensor | slice) -> torch.Tensor:
        return _fused_nll(net(rows.features[chosen]), rows, chosen)

    nets, curves, best = [], [], []
    for member in range(settings.members):
        torch.manual_seed(settings.seed + member)
        net = _Net(data.features, settings.hidden, begin)
        curve, epoch = _fit(net, loss, data, held_out, settings, member)
        nets.append(net)
        curves.append(curve)
        best.append(epoch)
        progress("Training the combiner", member + 1, settings.members)
    with torch.no_grad():
        outputs = [torch.stack([net(rows.features) for net in nets]).mean(0) for rows in (data, held_out)]
        worth = [_worth(said, rows) for said, rows in zip(outputs, (data, held_out), strict=True)]
    gain, threshold, asked = _train_schedule(data, held_out, worth, settings)
    combiner = Combiner(
        training.about.edge_base,
        training.about.cloud,
        training.about.rows,
        settings.without,
        *_mean_of(nets),
        *_mean_of([gain]),
        threshold,
    )
    return TrainedCombiner(combiner, curves[0][0][1], tuple(curves), tuple(best), asked)


def _train_schedule(
    data: CombinerData, held_out: CombinerData, worth: Sequence[torch.Tensor], settings: CombinerSettings
) -> tuple[_Net, float, float]:
    """What predicts the cloud's worth, the worth from which it is asked, and at what share of the held-out rows."""
    torch.manual_seed(settings.seed)
    gain = _Net(data.alone, settings.gain_hidden, worth[0].mean()[None])

    def loss(net: _Net, rows: CombinerData, chosen: torch.Tensor | slice) -> torch.Tensor:
        known = worth[0] if rows is data else worth[1]
        return (net(rows.alone[chosen])[:, 0] - known[chosen]).square()

    _fit(gain, loss, data, held_out, settings, 0)
    with torch.no_grad():
        predicted = gain(held_out.alone)[:, 0]
    threshold = float(torch.quantile(predicted, 1.0 - settings.calls))
    return gain, threshold, float((predicted >= threshold).float().mean())


Curve: TypeAlias = tuple[tuple[float, float], ...]
Loss: TypeAlias = Callable[[_Net, CombinerData, torch.Tensor | slice], torch.Tensor]


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


def _fit(
    net: _Net, loss: Loss, data: CombinerData, held_out: CombinerData, settings: CombinerSettings, member: int
) -> tuple[Curve, int]:
    """Adam with a cosine; in the end the net is what it was after the epoch that served the held-out rows best."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
    batches = -(-data.size // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
    order = torch.Generator().manual_seed(settings.seed + member)

    def judged() -> tuple[float, float]:
        with torch.no_grad():
            return float(loss(net, data, slice(None)).mean()), float(loss(net, held_out, slice(None)).mean())

    curve = [judged()]
    best, kept = 0, {name: value.clone() for name, value in net.state_dict().items()}
    for epoch in range(1, settings.epochs + 1):
        for chosen in torch.randperm(data.size, generator=order).split(settings.batch):
            optimizer.zero_grad()
            loss(net, data, chosen).mean().backward()
            optimizer.step()
            schedule.step()
        curve.append(judged())
        if curve[-1][1] < curve[best][1]:
            best, kept = epoch, {name: value.clone() for name, value in net.state_dict().items()}
        elif epoch - best >= settings.patience:
            break
    net.load_state_dict(kept)
    return tuple(curve), best
