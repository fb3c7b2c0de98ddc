"""The small networks of a combiner, and how each is fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from edge_runtime.fusion.combiner import Layer, Vector
from personalization.collab.combiner.settings import CombinerSettings

Curve: TypeAlias = tuple[tuple[float, float], ...]
"""Mean loss of the training rows and of the judging rows, an epoch each."""


class CombinerNet(nn.Module):
    """Standardised features, maybe fewer of them, through one hidden layer of tanh.

    In the beginning it says the same of every row.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def __init__(
        self,
        inputs: torch.Tensor,
        hidden: int,
        begin: torch.Tensor,
        directions: torch.Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Make one.

        Args:
            inputs: (n, features) of the training rows, by which they are standardised.
            hidden: width of the hidden layer.
            begin: (outputs,) what it says in the beginning.
            directions: (features, fewer) of the standardised features, what the hidden layer sees; None for all.
            dropout: share of what it sees that is hidden from it in training.
        """
        super().__init__()
        scale = inputs.std(0).clamp(min=1e-3)
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("basis", (torch.eye(len(scale)) if directions is None else directions) / scale[:, None])
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(self.basis.shape[1], hidden)
        self.out = nn.Linear(hidden, begin.shape[0])
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias.copy_(begin)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of (n, features): (n, outputs)."""
        result: torch.Tensor = self.out(torch.tanh(self.hidden(self.dropout((x - self.mean) @ self.basis))))
        return result


def principal_directions(inputs: torch.Tensor, count: int) -> torch.Tensor:
    """The directions in which standardised features differ most, each scaled to a deviation of 1: (features, count).

    There are fewer where features or rows are.
    """
    whole = (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-3)
    _, spread, directions = torch.linalg.svd(whole.double(), full_matrices=False)
    kept = min(count, int((spread > spread[0] * 1e-6).sum()))
    deviations = spread[:kept] / (len(inputs) - 1) ** 0.5
    return (directions[:kept].T / deviations).float()


def mean_of(nets: Sequence[CombinerNet]) -> tuple[Layer, Layer]:
    """The mean of several nets, which is one wider net, for numpy; what comes before the layers is in the first."""
    first = torch.cat([net.basis.double() @ net.hidden.weight.double().T for net in nets], 1)
    begun = torch.cat([net.hidden.bias for net in nets]).double() - nets[0].mean.double() @ first
    second = torch.cat([net.out.weight for net in nets], 1).double().T / len(nets)
    ended = torch.stack([net.out.bias for net in nets]).double().mean(0)
    return Layer(_as_stored(first), _as_stored(begun)), Layer(_as_stored(second), _as_stored(ended))


def _as_stored(tensor: torch.Tensor) -> Vector:
    """As the file will give it back."""
    values: Vector = tensor.detach().float().double().numpy()
    return values


Loss: TypeAlias = Callable[[CombinerNet, bool, torch.Tensor | slice], torch.Tensor]
"""Of a net, by the training rows (True) or the judging rows, of some of them: (chosen,)."""


def fit(
    net: CombinerNet, loss: Loss, rows: int, settings: CombinerSettings, member: int, *, epochs: int, decay: float
) -> tuple[Curve, int]:
    """Adam with a cosine; in the end the net is what it was after the epoch that served the judging rows best.

    Args:
        net: to be fitted.
        loss: what is made small.
        rows: how many training rows there are.
        settings: batch, rate, patience and seed.
        member: of several; each reads the rows in another order.
        epochs: at most.
        decay: of the weights.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=decay)
    batches = -(-rows // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    order = torch.Generator().manual_seed(settings.seed + member)

    def judged() -> tuple[float, float]:
        net.eval()
        with torch.no_grad():
            found = float(loss(net, True, slice(None)).mean()), float(loss(net, False, slice(None)).mean())
        net.train()
        return found

    curve = [judged()]
    best, kept = 0, {name: value.clone() for name, value in net.state_dict().items()}
    for epoch in range(1, epochs + 1):
        for chosen in torch.randperm(rows, generator=order).split(settings.batch):
            optimizer.zero_grad()
            loss(net, True, chosen).mean().backward()
            optimizer.step()
            schedule.step()
        curve.append(judged())
        if curve[-1][1] < curve[best][1]:
            best, kept = epoch, {name: value.clone() for name, value in net.state_dict().items()}
        elif epoch - best >= settings.patience:
            break
    net.load_state_dict(kept)
    net.eval()
    return tuple(curve), best
