"""Defines the small networks of a combiner and fits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from edge_runtime.fusion.combiner import Layer, Vector
from personalization.collab.combiner.settings import CombinerSettings

Curve: TypeAlias = tuple[tuple[float, float], ...]
"""Mean loss of the training rows and of the judging rows, one entry per epoch."""


class CombinerNet(nn.Module):
    """A network on standardised features, optionally projected to fewer, with one hidden tanh layer.

    Initially it gives the same output for every row.
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
        """Create a network.

        Args:
            inputs: (n, features) of the training rows; they define the standardisation.
            hidden: width of the hidden layer.
            begin: (outputs,) the initial output.
            directions: (features, fewer) projection of the standardised features for the hidden layer; None for all
                features.
            dropout: dropout on the hidden layer's inputs.
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
        """Map (n, features) to (n, outputs)."""
        result: torch.Tensor = self.out(torch.tanh(self.hidden(self.dropout((x - self.mean) @ self.basis))))
        return result


def principal_directions(inputs: torch.Tensor, count: int) -> torch.Tensor:
    """Return the principal directions of the standardised features, scaled to unit deviation: (features, count).

    There are fewer than `count` if there are fewer features or rows.
    """
    whole = (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-3)
    _, spread, directions = torch.linalg.svd(whole.double(), full_matrices=False)
    kept = min(count, int((spread > spread[0] * 1e-6).sum()))
    deviations = spread[:kept] / (len(inputs) - 1) ** 0.5
    return (directions[:kept].T / deviations).float()


def mean_of(nets: Sequence[CombinerNet]) -> tuple[Layer, Layer]:
    """Return the mean of several nets as one wider net for numpy; the first layer includes the standardisation."""
    first = torch.cat([net.basis.double() @ net.hidden.weight.double().T for net in nets], 1)
    begun = torch.cat([net.hidden.bias for net in nets]).double() - nets[0].mean.double() @ first
    second = torch.cat([net.out.weight for net in nets], 1).double().T / len(nets)
    ended = torch.stack([net.out.bias for net in nets]).double().mean(0)
    return Layer(_as_stored(first), _as_stored(begun)), Layer(_as_stored(second), _as_stored(ended))


def _as_stored(tensor: torch.Tensor) -> Vector:
    """Round to the precision of the stored file."""
    values: Vector = tensor.detach().float().double().numpy()
    return values


Loss: TypeAlias = Callable[[CombinerNet, bool, torch.Tensor | slice], torch.Tensor]
"""Loss per row, (chosen,): takes a net, whether to use the training or the judging rows, and which of them."""


def fit(
    net: CombinerNet, loss: Loss, rows: int, settings: CombinerSettings, member: int, *, epochs: int, decay: float
) -> tuple[Curve, int]:
    """Fit with AdamW and a cosine schedule; the net ends with the weights of the epoch best on the judging rows.

    Args:
        net: network to fit.
        loss: loss to minimise.
        rows: number of training rows.
        settings: batch, rate, patience and seed.
        member: index of the member; each reads the rows in another order.
        epochs: maximum number of epochs.
        decay: weight decay.
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
