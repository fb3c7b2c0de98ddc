"""The learned combiner: a small network that fuses the edge's and the cloud's distributions, row by row.

The candidates are the tokens that the cloud sent and the edge's `EDGE_TOP` likeliest. All other tokens form one more
candidate, the rest; they share its probability in proportion to the edge's. Each candidate has a few features, and the
fused distribution is a mixture of log-linear experts over them. A network computes the experts' coefficients and
mixture weights from features of both rows: their certainty and their agreement. So the cost of a row hardly depends on
the size of the vocabulary.

For one row, experts j with weights m_j (a softmax) and coefficients A_jf give
p(v) = sum_j m_j softmax_v(sum_f A_jf x_fv). A millionth of the edge's distribution is mixed in, so no token becomes
impossible.

A second network is the learned schedule. It predicts the gain from the cloud's row, in nats, from the edge's row and
from the edge's log-probs of the latest tokens (`edge_runtime.fusion.edge_features`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.edge_features import EDGE_FEATURES, LEAST_MASS, edge_features, probes_of, schedule_features
from edge_runtime.fusion.logprobs import mass_outside
from edge_runtime.fusion.sparse import LEAST_REST, UNSENT_CEILING, RowFormat, SparseLogProbs, likeliest

EDGE_TOP = 16
EXPERTS = 3
TOKEN_FEATURES = 7
"""Features of a candidate: log-probs of the edge, of the cloud and of the edge without context (or 0), then flags:
sent by the cloud, the rest, the edge's first, the cloud's first."""
ROW_FEATURES = EDGE_FEATURES + 10
WITHOUT_FEATURES = 4
OUTPUTS = EXPERTS * (TOKEN_FEATURES + 1)

OF_THE_EDGE = 1e-6
"""The share of the edge's own distribution that is always mixed in."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """x W + b: `weight` (inputs, outputs), `bias` (outputs,), float64."""

    weight: Vector = field(repr=False)
    bias: Vector = field(repr=False)

    def __call__(self, x: Vector) -> Vector:
        """Apply the layer to one vector."""
        return x @ self.weight + self.bias


@dataclass(frozen=True, eq=False, slots=True)
class Combiner:
    """A trained combiner.

    Attributes:
        base: `Bundle.base` of the edge model used in training.
        cloud: name of the cloud's model in the log-prob file.
        rows: how the cloud's rows were truncated and encoded in training; the combiner fuses such rows best.
        uses_without: whether the combiner reads the edge's row without context.
        hidden, out: layers of the network over features of both rows, with tanh between them.
        gain_hidden, gain_out: layers of the network that predicts the gain from the cloud.
        threshold: predicted gain from which the device asks the cloud.
        fingerprint: digest of the file.
    """

    base: str
    cloud: str
    rows: RowFormat
    uses_without: bool
    hidden: Layer
    out: Layer
    gain_hidden: Layer
    gain_out: Layer
    threshold: float
    fingerprint: str = ""

    def fuse(
        self, edge: NDArray[np.float32], cloud: SparseLogProbs, without: NDArray[np.float32] | None, step: int
    ) -> NDArray[np.float32]:
        """Fuse one row.

        Args:
            edge: (V,) float32 log-probabilities of the edge model with the private context.
            cloud: the cloud's row.
            without: (V,) float32 log-probabilities of the edge model without the context.
            step: index of the answer token that the row predicts, from 0.

        Returns:
            (V,) float32 log-probabilities, normalised up to 1e-4.

        Raises:
            ValueError: the combiner reads `without`, but it is None.
        """
        if self.uses_without and without is None:
            raise ValueError("this combiner needs the edge's log-probs without the context")
        top = likeliest(edge, EDGE_TOP)
        places = np.minimum(np.searchsorted(cloud.ids, top), cloud.ids.size - 1)
        new = top[cloud.ids[places] != top]
        ids = np.concatenate([cloud.ids, new])
        bare = None if without is None or not self.uses_without else without[ids].astype(np.float64)
        row = Candidates.of(
            edge[ids].astype(np.float64),
            edge[top].astype(np.float64),
            cloud.log_probs.astype(np.float64),
            cloud.tail_mass,
            mass_outside(edge, ids),
            bare,
        )
        fused = self.mix(row, step)
        whole = edge + np.float32(fused[-1] - row.log_rest)
        whole[ids] = fused[:-1]
        return whole

    def mix(self, row: Candidates, step: int) -> Vector:
        """Return the fused distribution of one row's candidates: (n + 1,) log-probs, the rest last."""
        return row.mix(self.out(np.tanh(self.hidden(row.features(step)))))

    def expects(self, edge: NDArray[np.float32], recent: Sequence[float], step: int) -> float:
        """Predict the gain from the cloud's row, in nats, from the edge alone.

        Args:
            edge: (V,) float32 log-probabilities of the row.
            recent: log-probs that the edge's rows gave the previous tokens, the latest last; only the last RECENT
                count.
            step: index of the answer token that the row predicts, from 0.
        """
        top = edge[likeliest(edge, EDGE_TOP)].astype(np.float64)
        return self.worth(schedule_features(top, recent, probes_of(edge), step))

    def worth(self, features: Vector) -> float:
        """Predict the gain from the cloud's row, in nats, from `schedule_features`."""
        return float(self.gain_out(np.tanh(self.gain_hidden(features)))[0])


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """One row's candidates: the tokens that the cloud sent, the edge's other likeliest tokens, and the rest last.

    Attributes:
        edge: (n + 1,) log-probs of the edge.
        cloud: (n + 1,) log-probs of the cloud, completed.
        without: (n + 1,) log-probs of the edge without context, or None.
        sent: number of candidates that the cloud sent; they come first.
        top: log-probs of the edge's likeliest tokens, the likeliest first.
    """

    edge: Vector
    cloud: Vector
    without: Vector | None
    sent: int
    top: Vector

    @classmethod
    def of(
        cls, edge: Vector, top: Vector, sent: Vector, tail_mass: float, rest: float, without: Vector | None
    ) -> Candidates:
        """Build one row's candidates, and fill in the cloud's missing log-probs.

        Args:
            edge: (n,) edge log-probs of the candidates, the s tokens sent by the cloud first.
            top: log-probs of the edge's likeliest tokens, the likeliest first.
            sent: (s,) log-probs that the cloud sent.
            tail_mass: the cloud's mass on all other tokens.
            rest: the edge's mass on all tokens that are not candidates.
            without: (n,) edge log-probs without context, or None.
        """
        rest, tail = max(rest, LEAST_REST), max(tail_mass, LEAST_REST)
        others = edge[sent.size :]
        outside = rest + float(np.exp(others).sum())
        unsent = np.minimum(others + math.log(tail / outside), float(sent.min()) + UNSENT_CEILING)
        left = max(tail - float(np.exp(unsent).sum()), LEAST_REST)
        bare = None
        if without is not None:
            bare = _ended(without, math.log(max(1.0 - float(np.exp(without).sum()), LEAST_MASS)))
        completed = np.empty(edge.size + 1)
        completed[: sent.size], completed[sent.size : -1], completed[-1] = sent, unsent, math.log(left)
        return cls(_ended(edge, math.log(rest)), completed, bare, sent.size, top)

    @property
    def log_rest(self) -> float:
        """Log of the edge's mass on the rest."""
        return float(self.edge[-1])

    def features(self, step: int) -> Vector:
        """Return the network's input: (ROW_FEATURES (+ WITHOUT_FEATURES),)."""
        edge, cloud, sent = self.edge, self.cloud, self.sent
        of_edge, of_cloud = np.exp(edge), np.exp(cloud)
        first, cloud_first = int(edge[:-1].argmax()), int(cloud[:sent].argmax())
        values = [
            *edge_features(self.top, step),
            cloud[cloud_first],
            -float(of_cloud @ cloud),
            math.log(float(of_cloud[sent:].sum())),
            math.log(sent),
            float(first == cloud_first),
            edge[cloud_first],
            cloud[first],
            float(np.minimum(of_edge, of_cloud).sum()),
            float(of_cloud @ (cloud - edge)),
            float(of_edge @ (edge - cloud)),
        ]
        if self.without is not None:
            bare = self.without
            values += [
                -float(np.exp(bare) @ bare),
                float(of_edge @ (edge - bare)),
                bare[first],
                float(of_cloud @ (cloud - bare)),
            ]
        return np.array(values)

    def tokens(self) -> Vector:
        """Return the features that the experts weigh: (TOKEN_FEATURES, n + 1)."""
        tokens = np.zeros((TOKEN_FEATURES, self.edge.size))
        tokens[0], tokens[1] = self.edge, self.cloud
        if self.without is not None:
            tokens[2] = self.without
        tokens[3, : self.sent] = 1.0
        tokens[4, -1] = 1.0
        tokens[5, self.edge[:-1].argmax()] = 1.0
        tokens[6, self.cloud[: self.sent].argmax()] = 1.0
        return tokens

    def mix(self, outputs: Vector) -> Vector:
        """Mix the experts by the network's (OUTPUTS,) outputs: (n + 1,) log-probs, the rest last."""
        scores = outputs[EXPERTS:].reshape(EXPERTS, TOKEN_FEATURES) @ self.tokens()
        experts = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = np.exp(outputs[:EXPERTS] - outputs[:EXPERTS].max())
        mixed = (shares / (shares.sum() * experts.sum(axis=1))) @ experts
        fused: Vector = np.log(mixed * (1.0 - OF_THE_EDGE) + np.exp(self.edge) * OF_THE_EDGE)
        return fused

    def divergence(self, fused: Vector) -> float:
        """Return KL(fused || edge) in nats for (n + 1,) log-probs from `mix`: the gain if tokens follow `fused`."""
        return float(np.exp(fused) @ (fused - self.edge))


def _ended(values: Vector, last: float) -> Vector:
    """Append one value; `np.append` takes four times as long."""
    longer = np.empty(values.size + 1)
    longer[:-1], longer[-1] = values, last
    return longer
