"""Fuses the edge's next-token distribution with the cloud's sparse one, in log-prob space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RequestError
from edge_runtime.fusion.combiner import Combiner
from edge_runtime.fusion.logprobs import log_softmax, mass_outside
from edge_runtime.fusion.sparse import LEAST_REST, UNSENT_CEILING, SparseLogProbs

_NO_MASS = 1e-300


class Strategy(StrEnum):
    """How two distributions are fused; `e` is the edge's log-prob, `c` the cloud's, `w` the weight.

    GEOMETRIC: w e + (1 - w) c, renormalised (a product of experts). ARITHMETIC: log(w exp e + (1 - w) exp c).
    MAX: max(e, c), renormalised. DELTA: c + w (e with context - e without context), renormalised, after CoSteer
    (delta steering; w is its alpha and may exceed 1). LEARNED: a trained combiner fuses both (see
    `edge_runtime.fusion.combiner`).
    """

    GEOMETRIC = "geometric"
    ARITHMETIC = "arithmetic"
    MAX = "max"
    DELTA = "delta"
    LEARNED = "learned"


def usual_weight(strategy: Strategy) -> float:
    """Return a strategy's default weight."""
    return 1.0 if strategy is Strategy.DELTA else 0.5


@dataclass(frozen=True, slots=True)
class Fusion:
    """A strategy and its weight: the edge's share (geometric, arithmetic) or alpha (delta); unused by the others.

    Attributes:
        strategy: how two distributions are fused.
        weight: weight of the edge.
        combiner: combiner for learned fusion; if it is None, the assistant fills in the bundle's.
    """

    strategy: Strategy = Strategy.GEOMETRIC
    weight: float = usual_weight(Strategy.GEOMETRIC)
    combiner: Combiner | None = None

    @property
    def needs_without(self) -> bool:
        """Whether fusion also needs the edge's rows without the context."""
        return self.strategy is Strategy.DELTA or (self.combiner is not None and self.combiner.uses_without)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        most = 10.0 if self.strategy is Strategy.DELTA else 1.0
        if not 0.0 <= self.weight <= most:
            raise RequestError(f"`weight` of '{self.strategy}' must be in 0 .. {most:g}, not {self.weight}.")


def _strategy(name: str) -> Strategy:
    try:
        return Strategy(name)
    except ValueError:
        raise RequestError(f"There is no fusion strategy '{name}'. Use one of: {', '.join(Strategy)}.") from None


def complete_tail(edge: NDArray[np.float32], cloud: SparseLogProbs) -> NDArray[np.float32]:
    """Expand a sparse cloud row to all V entries: the tail's mass is distributed like the edge's distribution.

    A token that the cloud left out gets a share of the tail mass in proportion to the edge's probability. The share is
    at most half of the least kept probability, since the token was less likely than all kept ones. The excess goes to
    the other tail tokens. If the tail is too heavy for this cap (a flat row), the cap is the least kept probability
    itself. No entry is -inf.

    Args:
        edge: (V,) float32 log-probabilities, normalised.
        cloud: the sparse row; all its ids are below V.

    Returns:
        (V,) float32 log-probabilities whose exponentials sum to 1 up to rounding.
    """
    dense = edge.copy()
    dense[cloud.ids] = -np.inf
    tail = _tail(edge, dense, cloud)
    dense += tail.shift
    np.minimum(dense, tail.ceiling, out=dense)
    dense[cloud.ids] = cloud.log_probs
    return dense


@dataclass(frozen=True, slots=True)
class Tail:
    """Log-prob of a token that the cloud left out: the edge's log-prob plus `shift`, at most `ceiling`."""

    shift: np.float32
    ceiling: np.float32


def tail_of(edge: NDArray[np.float32], cloud: SparseLogProbs) -> Tail:
    """Compute the shift and ceiling with which `complete_tail` expands a row.

    Args:
        edge: (V,) float32 log-probabilities, normalised.
        cloud: the sparse row; all its ids are below V.
    """
    left_out = edge.copy()
    left_out[cloud.ids] = -np.inf
    return _tail(edge, left_out, cloud)


def _tail(edge: NDArray[np.float32], left_out: NDArray[np.float32], cloud: SparseLogProbs) -> Tail:
    tail_mass = max(cloud.tail_mass, LEAST_REST)
    least = float(cloud.log_probs.min())
    ceiling = np.float32(least + UNSENT_CEILING)
    if tail_mass > (edge.shape[0] - cloud.ids.shape[0]) * math.exp(ceiling):
        ceiling = np.float32(least)
    shift = np.float32(math.log(tail_mass) - math.log(max(mass_outside(edge, cloud.ids), _NO_MASS)))
    capped = np.flatnonzero(left_out > ceiling - shift)
    while capped.size:
        # Water filling: cap tokens, then share the remaining mass among the others. Shares only grow, so the loop ends.
        free_mass = tail_mass - capped.size * math.exp(ceiling)
        free_edge = mass_outside(edge, np.concatenate([cloud.ids, capped]))
        if free_mass <= 0.0 or free_edge <= 0.0:
            break
        shift = np.float32(math.log(free_mass) - math.log(free_edge))
        above = np.flatnonzero(left_out > ceiling - shift)
        if above.size <= capped.size:
            break
        capped = above
    return Tail(shift, ceiling)


def fuse(
    edge: NDArray[np.float32],
    cloud: SparseLogProbs,
    fusion: Fusion,
    edge_without: NDArray[np.float32] | None = None,
    step: int = 0,
) -> NDArray[np.float32]:
    """Fuse one row.

    Args:
        edge: (V,) float32 log-probabilities of the edge model with the private context.
        cloud: the cloud's top K for the same position, without the context.
        fusion: strategy and weight.
        edge_without: (V,) float32 log-probabilities of the edge model without the context; delta steering and some
            combiners need it.
        step: index of the answer token that the row predicts, from 0; learned fusion reads it.

    Returns:
        (V,) float32 log-probabilities, normalised.

    Raises:
        ValueError: `edge_without` or the combiner of learned fusion is needed but missing.
    """
    if fusion.strategy is Strategy.LEARNED:
        if fusion.combiner is None:
            raise ValueError("learned fusion needs a combiner")
        return fusion.combiner.fuse(edge, cloud, edge_without, step)
    weight = np.float32(fusion.weight)
    match fusion.strategy:
        case Strategy.GEOMETRIC:
            fused = complete_tail(edge, cloud)
            fused -= edge
            fused *= np.float32(1.0) - weight
            fused += edge
        case Strategy.ARITHMETIC:
            if weight in (0.0, 1.0):
                return edge.copy() if weight else complete_tail(edge, cloud)
            fused = _log_add_exp(complete_tail(edge, cloud) + np.log1p(-weight), edge + np.log(weight))
        case Strategy.MAX:
            fused = np.maximum(edge, complete_tail(edge, cloud))
        case Strategy.DELTA:
            if edge_without is None:
                raise ValueError("delta steering needs the edge's log-probs without the context")
            # The cloud has no context either, so its tail resembles the edge's without context.
            fused = complete_tail(edge_without, cloud)
            fused += weight * (edge - edge_without)
    return log_softmax(fused)


def _log_add_exp(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    # numpy's logaddexp processes single elements; exp and log on whole rows are six times faster.
    most = np.maximum(a, b)
    a -= b
    np.abs(a, out=a)
    np.negative(a, out=a)
    np.exp(a, out=a)
    a += np.float32(1.0)
    np.log(a, out=a)
    a += most
    return a
