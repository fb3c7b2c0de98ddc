"""CoGenesis' own combiner (Zhang et al., ACL 2024), for comparison: a network over two whole vocabularies.

concat(edge, cloud) -> 512 -> 16 -> 1 -> sigmoid = w, the edge's weight; each side gives its ten likeliest tokens, all
others are 0. Trained as described: cross-entropy, Adam at 2e-3, linear with warm-up, 4 epochs, 2 answers a step, the
best on dev kept. Two things differ, since the published ones can't be computed or are no likelihood: the inputs are
log-probs (raw logits do not cross the bridge), and what w mixes are the logs of both rows, the cloud's tail completed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from personalization.collab.logprobs.file import LogProbs

WIDTHS = (512, 16)
TOP = 10
EPOCHS, ANSWERS, RATE, WARMUP = 4, 2, 2e-3, 0.03


class ReferenceCombiner(nn.Module):
    """The network; its input is sparse, so its first layer gathers the rows of the tokens that are there."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        first = nn.Linear(2 * vocab_size, WIDTHS[0])
        self.tokens = nn.EmbeddingBag.from_pretrained(first.weight.detach().T.contiguous(), freeze=False, mode="sum")
        self.bias = nn.Parameter(first.bias.detach())
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Linear(WIDTHS[0], WIDTHS[1]), nn.ReLU(), nn.Linear(WIDTHS[1], 1), nn.Flatten(0)
        )

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """The logit of w: (n,)."""
        first = self.tokens(inputs.ids, inputs.starts, per_sample_weights=inputs.values) + self.bias
        result: torch.Tensor = self.rest(first)
        return result

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """Both models' likeliest tokens of n rows, as a sparse matrix.

    Attributes:
        ids: (k,) int64, columns: the edge's tokens, and behind the vocabulary the cloud's.
        values: (k,) float32, their log-probs.
        starts: (n,) int64, where each row begins.
    """

    ids: torch.Tensor = field(repr=False)
    values: torch.Tensor = field(repr=False)
    starts: torch.Tensor = field(repr=False)

    @classmethod
    def of(cls, rows: LogProbs) -> Inputs:
        """Read a file's rows."""
        of_edge = _likeliest(rows, rows.edge)
        of_cloud = _likeliest(rows, np.where(rows.is_sent, rows.completed, -np.inf)) & rows.is_sent
        places = np.concatenate([np.flatnonzero(of_edge), np.flatnonzero(of_cloud)])
        row = rows.row_of[places]
        order = np.argsort(row, kind="stable")
        shifts = np.where(np.arange(places.size) < of_edge.sum(), 0, rows.about.vocab_size)
        values = np.concatenate([rows.edge[of_edge], rows.completed[of_cloud]])
        starts = np.searchsorted(row[order], np.arange(rows.size))
        ids = (rows.ids[places].astype(np.int64) + shifts)[order]
        return cls(torch.from_numpy(ids), torch.from_numpy(values[order]), torch.from_numpy(starts))

    def part(self, first: int, last: int) -> Inputs:
        """Some rows that follow each other."""
        start = int(self.starts[first])
        end = int(self.starts[last]) if last < len(self.starts) else len(self.ids)
        return Inputs(self.ids[start:end], self.values[start:end], self.starts[first:last] - start)


@dataclass(frozen=True, slots=True)
class TrainedReference:
    """The network, its mean NLL on training and dev rows an epoch (the beginning first), and which epoch was kept."""

    model: ReferenceCombiner
    curve: tuple[tuple[float, float], ...]
    best: int


def train_reference(
    training: LogProbs, judging: LogProbs, seed: int, threads: int, progress: Callable[[str, int, int], None]
) -> TrainedReference:
    """Train the reference on some users, keep the epoch that serves others best.

    Args:
        training: rows to learn from.
        judging: rows of other users.
        seed: of weights and order.
        threads: of the processor.
        progress: see `export.progress`.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = ReferenceCombiner(training.about.vocab_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    ends = np.cumsum([record.rows for record in training.records]).tolist()
    answers = list(zip([0, *ends[:-1]], ends, strict=True))
    steps = EPOCHS * -(-len(answers) // ANSWERS)
    warmup = max(round(WARMUP * steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))
    )
    parts = [(Inputs.of(part), _Mixed(part)) for part in (training, judging)]
    inputs, mixed = parts[0]

    def judged() -> tuple[float, float]:
        with torch.no_grad():
            first, second = (float(nll(model(given), 0, nll.size).mean()) for given, nll in parts)
        return first, second

    curve = [judged()]
    best, kept = 0, {name: value.clone() for name, value in model.state_dict().items()}
    order = torch.Generator().manual_seed(seed)
    for epoch in range(1, EPOCHS + 1):
        for chosen in torch.randperm(len(answers), generator=order).split(ANSWERS):
            optimizer.zero_grad()
            losses = [mixed(model(inputs.part(*answers[one])), *answers[one]) for one in chosen.tolist()]
            torch.cat(losses).mean().backward()
            optimizer.step()
            schedule.step()
        curve.append(judged())
        progress("Training the reference combiner", epoch, EPOCHS)
        if curve[-1][1] < curve[best][1]:
            best, kept = epoch, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return TrainedReference(model, tuple(curve), best)


def reference_nll(rows: LogProbs, model: ReferenceCombiner) -> NDArray[np.float64]:
    """What the reference gives the reference answers' tokens: (n,) float64, nats."""
    with torch.no_grad():
        nll: NDArray[np.float64] = _Mixed(rows)(model(Inputs.of(rows)), 0, rows.size).double().numpy()
    return nll


class _Mixed:
    """NLL of rows whose logs are mixed with a weight each, as in geometric fusion; differentiable in the weights."""

    def __init__(self, rows: LogProbs) -> None:
        edge, cloud = rows.edge.astype(np.float64), rows.completed.astype(np.float64)
        self.size = rows.size
        self._edge, self._cloud = torch.from_numpy(edge), torch.from_numpy(cloud)
        self._row = torch.from_numpy(rows.row_of)
        self._starts = [*rows.starts.tolist(), edge.size]
        self._target = torch.from_numpy(rows.target_at)
        self._rest = torch.from_numpy(rows.edge_rest.astype(np.float64))
        self._shift = torch.from_numpy(rows.shift.astype(np.float64))

    def __call__(self, logits: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Of the rows `first` .. `last`, given the logits of the edge's weight: (last - first,) float64."""
        weight = torch.sigmoid(logits.double())
        kept = slice(self._starts[first], self._starts[last])
        row = self._row[kept] - first
        edge, cloud = self._edge[kept], self._cloud[kept]
        mixed = weight[row] * edge + (1 - weight[row]) * cloud
        # Log-probs: none is above 0, and of the likeliest token of each side one is not far below.
        total = torch.exp(self._rest[first:last] + (1 - weight) * self._shift[first:last])
        total = total.index_add(0, row, mixed.exp())
        return total.log() - mixed[self._target[first:last] - kept.start]


def _likeliest(rows: LogProbs, log_probs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a kept token is among the TOP likeliest of its row: (m,) bool."""
    order = np.lexsort((-log_probs, rows.row_of))
    ranked = np.empty(order.size, bool)
    ranked[order] = rows.place < TOP
    return ranked
