"""Trains the compact combiner (see `edge_runtime.combiner`) on a log-prob file: minutes on one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
    edge_features,
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
        alone: (n, EDGE_FEATURES), what the edge tells alone.
        tokens: (n, TOKEN_FEATURES, most).
        padding: (n, most) bool.
        target: (n,) int64.
        offset: (n,).
        edge_nll: (n,).
    """

    features: torch.Tensor = field(repr=False)
    alone: torch.Tensor = field(repr=False)
    tokens: torch.Tensor = field(repr=False)
    padding: torch.Tensor = field(repr=False)
    target: torch.Tensor = field(repr=False)
    offset: torch.Tensor = field(repr=False)
    edge_nll: torch.Tensor = field(repr=False)

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
            torch.tensor([edge_features(row.candidates.top, row.step) for row in found], dtype=torch.float32),
            torch.from_numpy(tokens),
            torch.from_numpy(np.arange(tokens.shape[2]) >= sizes[:, None]),
            torch.tensor([row.target for row in found]),
            torch.tensor([row.offset for row in found], dtype=torch.float32),
            torch.from_numpy(rows.edge_nll.astype(np.float32)),
        )

    @property
    def size(self) -> int:
        """Rows."""
        return int(self.target.shape[0])


class _Net(nn.Module):
    """Features, standardised, through one hidden layer of tanh."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, inputs: torch.Tensor, hidden: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0).clamp(min=1e-3))
        self.hidden = nn.Linear(inputs.shape[1], hidden)
        self.out = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(torch.tanh(self.hidden((x - self.mean) / self.scale)))
        return result

    def layers(self) -> tuple[Layer, Layer]:
        """Both layers for numpy, the standardisation in the first."""
        weight = (self.hidden.weight / self.scale).detach().double().numpy().T
        bias = self.hidden.bias.detach().double().numpy() - self.mean.double().numpy() @ weight
        out = self.out.weight.detach().double().numpy().T, self.out.bias.detach().double().numpy()
        return Layer(*_as_stored(weight, bias)), Layer(*_as_stored(*out))


def _as_stored(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As the file will give them back."""
    return weight.astype(np.float32).astype(np.float64), bias.astype(np.float32).astype(np.float64)


@dataclass(frozen=True, slots=True)
class TrainedCombiner:
    """A combiner, and how its training went.

    Attributes:
        combiner: of the best epoch.
        curve: mean NLL of the training rows' and of the dev rows, nats, an epoch each, the beginning first.
        best: the epoch that was kept.
        asked: share of the dev rows at which the learned schedule asks.
    """

    combiner: Combiner
    curve: tuple[tuple[float, float], ...]
    best: int
    asked: float


def train_compact(
    training: LogProbs,
    judging: LogProbs,
    settings: CombinerSettings,
    progress: Callable[[str, int, int], None],
) -> TrainedCombiner:
    """Train on some users, keep what serves others best.

    Args:
        training: rows to learn from.
        judging: rows of other users, which tell the best epoch and the schedule's threshold.
        settings: how.
        progress: see `export.progress`.

    Raises:
        DataError: a file lacks what the combiner reads.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    data = CombinerData.of(training, without=settings.without)
    held_out = CombinerData.of(judging, without=settings.without)
    net = _Net(data.features, settings.hidden, OUTPUTS)
    with torch.no_grad():
        coefficients = net.out.bias[EXPERTS:].view(EXPERTS, TOKEN_FEATURES)
        coefficients[:, :2] = torch.tensor(_BEGINNINGS)
    curve, best = _fit(net, _fused_nll, data, held_out, settings, progress, "Training the combiner")
    with torch.no_grad():
        worth = [one.edge_nll - _fused_nll(net, one, slice(None)) for one in (data, held_out)]
    gain = _Net(data.alone, settings.gain_hidden, 1)

    def gain_loss(net: _Net, rows: CombinerData, chosen: torch.Tensor | slice) -> torch.Tensor:
        known = worth[0] if rows is data else worth[1]
        # Few tokens gain very much; what is to be known is the mean.
        return (net(rows.alone[chosen])[:, 0] - known[chosen].clamp(-5.0, 5.0)).square()

    _fit(gain, gain_loss, data, held_out, settings, progress, "Learning when to ask")
    with torch.no_grad():
        predicted = gain(held_out.alone)[:, 0]
    threshold = float(torch.quantile(predicted, 1.0 - settings.calls)) if settings.calls < 1.0 else -1e3
    combiner = Combiner(
        training.about.edge_base,
        training.about.cloud,
        settings.without,
        *net.layers(),
        *gain.layers(),
        threshold,
    )
    return TrainedCombiner(combiner, curve, best, float((predicted >= threshold).float().mean()))


Loss = Callable[[_Net, CombinerData, torch.Tensor | slice], torch.Tensor]


def _fused_nll(net: _Net, data: CombinerData, chosen: torch.Tensor | slice) -> torch.Tensor:
    """What `Candidates.mix` computes, of many rows: (n,) nats."""
    outputs, tokens, target = net(data.features[chosen]), data.tokens[chosen], data.target[chosen]
    padding = data.padding[chosen]
    scores = outputs[:, EXPERTS:].view(-1, EXPERTS, TOKEN_FEATURES) @ tokens
    experts = scores.masked_fill(padding[:, None], _NOWHERE).log_softmax(-1)
    at = target[:, None, None].expand(-1, EXPERTS, 1)
    mixed = torch.logsumexp(outputs[:, :EXPERTS].log_softmax(-1) + experts.gather(2, at)[..., 0], 1)
    edge = tokens[:, 0].gather(1, target[:, None])[:, 0]
    fused = torch.logaddexp(mixed + np.log1p(-OF_THE_EDGE), edge + np.log(OF_THE_EDGE))
    return -(fused + data.offset[chosen])


def _fit(
    net: _Net,
    loss: Loss,
    data: CombinerData,
    held_out: CombinerData,
    settings: CombinerSettings,
    progress: Callable[[str, int, int], None],
    what: str,
) -> tuple[tuple[tuple[float, float], ...], int]:
    """Adam with a cosine; in the end the net is what it was after the epoch that served the held-out rows best."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
    batches = -(-data.size // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
    order = torch.Generator().manual_seed(settings.seed)

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
        progress(what, epoch, settings.epochs)
        if curve[-1][1] < curve[best][1]:
            best, kept = epoch, {name: value.clone() for name, value in net.state_dict().items()}
        elif epoch - best >= settings.patience:
            break
    net.load_state_dict(kept)
    return tuple(curve), best
