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
from edge_runtime.fusion.sparse import SparseLogProbs

# A cloud that is certain reports a tail of 0, yet no token may become impossible.
_LEAST_TAIL_MASS = 1e-9
# What a token that the cloud left out may have of the least kept one: it was less likely, and on average about half as
# likely where the edge expects more. A cap at the least kept one itself costs 7 % more divergence, and too often lets a
# token win that the edge is certain of and the cloud rules out.
_CEILING = math.log(0.5)
_NO_MASS = 1e-300


class Strategy(StrEnum):
    """How two distributions become one; `e` is the edge's log-prob, `c` the cloud's, `w` the weight.

    GEOMETRIC: w e + (1 - w) c, renormalised (a product of experts). ARITHMETIC: log(w exp e + (1 - w) exp c).
    MAX: max(e, c), renormalised. DELTA: c + w (e with context - e without context), renormalised, after CoSteer
    (delta steering; w is its alpha and may pass 1). LEARNED: what a trained combiner makes of both (see
    `edge_runtime.fusion.combiner`).
    """

    GEOMETRIC = "geometric"
    ARITHMETIC = "arithmetic"
    MAX = "max"
    DELTA = "delta"
    LEARNED = "learned"


def usual_weight(strategy: Strategy) -> float:
    """The weight of a strategy for which none is given."""
    return 1.0 if strategy is Strategy.DELTA else 0.5


@dataclass(frozen=True, slots=True)
class Fusion:
    """A strategy and its weight: the edge's share (geometric, arithmetic) or alpha (delta); unused by the others.

    Attributes:
        strategy: how two distributions become one.
        weight: of the edge.
        combiner: of learned fusion; None takes the bundle's, which the assistant puts here.
    """

    strategy: Strategy = Strategy.GEOMETRIC
    weight: float = 0.5
    combiner: Combiner | None = None

    @property
    def needs_without(self) -> bool:
        """Whether the edge's rows without the context are needed, too."""
        return self.strategy is Strategy.DELTA or (self.combiner is not None and self.combiner.uses_without)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        most = 10.0 if self.strategy is Strategy.DELTA else 1.0
        if not 0.0 <= self.weight <= most:
            raise RequestError(f"The weight of '{self.strategy}' must lie in 0 .. {most:g}, not {self.weight}.")


def _strategy(name: str) -> Strategy:
    try:
        return Strategy(name)
    except ValueError:
        raise RequestError(f"There is no fusion strategy '{name}'. Use one of: {', '.join(Strategy)}.") from None


def complete_tail(edge: NDArray[np.float32], cloud: SparseLogProbs) -> NDArray[np.float32]:
    """Give a sparse cloud row all V entries: the tail's mass takes the shape of the edge's own distribution.

    A token that was left out gets its share of the tail mass in proportion to the edge's probability of it, and at most
    half of the least kept probability, since it was less likely than all that were kept; what that cap takes away goes
    to the other tail tokens. Where the tail is too heavy for that (a flat row), the cap is the least kept probability
    itself. No entry is -inf.

    Args:
        edge: (V,) float32 log-probabilities, normalised.
        cloud: the sparse row; its ids lie below V.

    Returns:
        (V,) float32 log-probabilities that sum to 1 up to rounding.
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
    """What a token that the cloud left out is given: the edge's log-prob plus `shift`, and at most `ceiling`."""

    shift: np.float32
    ceiling: np.float32


def tail_of(edge: NDArray[np.float32], cloud: SparseLogProbs) -> Tail:
    """How `complete_tail` completes a row.

    Args:
        edge: (V,) float32 log-probabilities, normalised.
        cloud: the sparse row; its ids lie below V.
    """
    left_out = edge.copy()
    left_out[cloud.ids] = -np.inf
    return _tail(edge, left_out, cloud)


def _tail(edge: NDArray[np.float32], left_out: NDArray[np.float32], cloud: SparseLogProbs) -> Tail:
    tail_mass = max(cloud.tail_mass, _LEAST_TAIL_MASS)
    least = float(cloud.log_probs.min())
    ceiling = np.float32(least + _CEILING)
    if tail_mass > (edge.shape[0] - cloud.ids.shape[0]) * math.exp(ceiling):
        ceiling = np.float32(least)
    shift = np.float32(math.log(tail_mass) - math.log(max(mass_outside(edge, cloud.ids), _NO_MASS)))
    capped = np.flatnonzero(left_out > ceiling - shift)
    while capped.size:
        # Water filling: cap, then let the others share what is left; the share can only grow, so this ends.
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
        edge_without: (V,) float32 log-probabilities of the edge model without the context; delta steering needs it,
            and so do some combiners.
        step: which token of the answer the row predicts, from 0; learned fusion looks at it.

    Returns:
        (V,) float32 log-probabilities, normalised.

    Raises:
        ValueError: `edge_without`, or learned fusion's combiner, is needed and not there.
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
            # The cloud has no context either, so its tail looks like the edge's without context.
            fused = complete_tail(edge_without, cloud)
            fused += weight * (edge - edge_without)
    return log_softmax(fused)


def _log_add_exp(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    # numpy's logaddexp takes one element at a time; exp and log of whole rows are six times faster.
    most = np.maximum(a, b)
    a -= b
    np.abs(a, out=a)
    np.negative(a, out=a)
    np.exp(a, out=a)
    a += np.float32(1.0)
    np.log(a, out=a)
    a += most
    return a
