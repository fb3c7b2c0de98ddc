"""The learned combiner: a small network that says, row by row, how edge and cloud become one distribution.

The tokens that matter singly, the candidates, are those that the cloud sent and the edge's `EDGE_TOP` likeliest; all
others are one more candidate, the rest, and share its probability as the edge has it. Each candidate has a few
features; a mixture of log-linear experts over them is the fused distribution. What the experts weigh, and what they
count for, comes from a network over features of both rows: how certain and how much of one mind they are. So the cost
of a row hardly depends on the vocabulary. Formulas, a row: experts j with weights m_j (a softmax) and coefficients
A_jf give p(v) = sum_j m_j softmax_v(sum_f A_jf x_fv); a millionth of the edge's own is mixed in, so that no token
becomes impossible. A second network predicts what the cloud's row will be worth, in nats, from the edge's row and from
how the edge liked the tokens just written (`edge_runtime.fusion.edge_features`): the learned schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.edge_features import EDGE_FEATURES, LEAST_MASS, edge_features, probes_of, schedule_features
from edge_runtime.fusion.logprobs import mass_outside
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, likeliest

EDGE_TOP = 16
EXPERTS = 3
TOKEN_FEATURES = 7
"""Of a candidate: the edge's log-prob, the cloud's, the edge's without context (or 0), and whether it is one that the
cloud sent, the rest, the edge's first, the cloud's first."""
ROW_FEATURES = EDGE_FEATURES + 10
WITHOUT_FEATURES = 4
OUTPUTS = EXPERTS * (TOKEN_FEATURES + 1)

LEAST_REST = 1e-9
# What a token that the cloud left out may have of the least one it sent; see `edge_runtime.fusion.fuse`.
UNSENT_CEILING = math.log(0.5)
OF_THE_EDGE = 1e-6
"""The share of the edge's own distribution that is always mixed in."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """x W + b: `weight` (inputs, outputs), `bias` (outputs,), float64."""

    weight: Vector = field(repr=False)
    bias: Vector = field(repr=False)

    def __call__(self, x: Vector) -> Vector:
        """Of one vector."""
        return x @ self.weight + self.bias


@dataclass(frozen=True, eq=False, slots=True)
class Combiner:
    """A trained combiner.

    Attributes:
        base: `Bundle.base` of the edge model that it was trained with.
        cloud: what its log-prob file called the cloud's model.
        rows: how the cloud's rows were cut and coded there: it fuses such rows best.
        uses_without: whether it reads the edge's row without context.
        hidden, out: of the network over features of both rows; tanh lies between.
        gain_hidden, gain_out: of the network that predicts the cloud's worth.
        threshold: predicted worth from which the cloud is asked.
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
            step: which token of the answer the row predicts, from 0.

        Returns:
            (V,) float32 log-probabilities, normalised up to 1e-4.

        Raises:
            ValueError: the combiner reads `without`, and it is not there.
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
        """The fused distribution of one row's candidates: (n + 1,) log-probs, the rest's as the last."""
        return row.mix(self.out(np.tanh(self.hidden(row.features(step)))))

    def expects(self, edge: NDArray[np.float32], recent: Sequence[float], step: int) -> float:
        """What the cloud's row will be worth, in nats, for all that the edge tells.

        Args:
            edge: (V,) float32 log-probabilities of the row.
            recent: what its rows gave the tokens before, the latest last; more than RECENT are not looked at.
            step: which token of the answer the row predicts, from 0.
        """
        top = edge[likeliest(edge, EDGE_TOP)].astype(np.float64)
        return self.worth(schedule_features(top, recent, probes_of(edge), step))

    def worth(self, features: Vector) -> float:
        """What the cloud's row will gain, in nats, predicted from `schedule_features`."""
        return float(self.gain_out(np.tanh(self.gain_hidden(features)))[0])


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """One row's candidates: those that the cloud sent, the edge's others, and the rest as the last.

    Attributes:
        edge: (n + 1,) log-probs of the edge.
        cloud: (n + 1,) log-probs of the cloud, completed.
        without: (n + 1,) log-probs of the edge without context, or None.
        sent: how many the cloud sent; they come first.
        top: log-probs of the edge's likeliest, the likeliest first.
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
        """Complete what the models said of the candidates.

        Args:
            edge: (n,) log-probs of the candidates, those that the cloud sent first.
            top: of the edge's likeliest, the likeliest first.
            sent: (s,) the cloud's log-probs.
            tail_mass: the cloud's mass on all else.
            rest: the edge's mass on all that are no candidates.
            without: (n,) log-probs without context, or None.
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
        """What the network reads: (ROW_FEATURES (+ WITHOUT_FEATURES),)."""
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
        """What the experts weigh: (TOKEN_FEATURES, n + 1)."""
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
        """The mixture that the network's (OUTPUTS,) outputs say: (n + 1,) log-probs, the rest's as the last."""
        scores = outputs[EXPERTS:].reshape(EXPERTS, TOKEN_FEATURES) @ self.tokens()
        experts = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = np.exp(outputs[:EXPERTS] - outputs[:EXPERTS].max())
        mixed = (shares / (shares.sum() * experts.sum(axis=1))) @ experts
        fused: Vector = np.log(mixed * (1.0 - OF_THE_EDGE) + np.exp(self.edge) * OF_THE_EDGE)
        return fused

    def divergence(self, fused: Vector) -> float:
        """KL(fused || edge) of (n + 1,) log-probs from `mix`, nats: what fusion gains if tokens come as it says."""
        return float(np.exp(fused) @ (fused - self.edge))


def _ended(values: Vector, last: float) -> Vector:
    """With one more value behind them; `np.append` takes four times as long."""
    longer = np.empty(values.size + 1)
    longer[:-1], longer[-1] = values, last
    return longer
