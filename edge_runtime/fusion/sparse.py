"""Sparse log-probabilities: the K likeliest tokens of a row and the mass of all the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RequestError
from edge_runtime.fusion.logprobs import CANCELLATION

ValueType = Literal["float32", "float16", "bits12"]

# Below this, 1 - sum(kept) has lost precision, so the tail is summed directly.
_CANCELLATION = 1e-3
LEAST_REST = 1e-9
"""Least mass of all tokens that were not sent. A certain cloud reports 0, but no token may become impossible."""
# Where the edge expects more than the least sent probability, the cloud's is on average about half of it. A cap at the
# least sent probability itself costs 7 % more divergence, and too often lets a token win that only the edge is certain
# of.
UNSENT_CEILING = math.log(0.5)
"""Log of the cap on the probability of a token that was not sent, relative to the least sent one."""
_BLOCK, _LARGE_BLOCK = 16, 64


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a cloud truncates and encodes its rows. The defaults are exact for the kept tokens; `THIN` is not.

    Attributes:
        top_k: maximum tokens per row.
        mass: a row keeps the fewest likeliest tokens whose probabilities sum to this, at most `top_k`; 1 keeps `top_k`.
        value_type: "float32" is exact; "float16" and "bits12" (16 and 12 bits) changed no choice among thousands.
        floor: tokens below this probability are dropped, except the likeliest; 0 drops none.
    """

    top_k: int = 256
    mass: float = 1.0
    value_type: ValueType = "float32"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise RequestError(f"`top_k` must be at least 1, not {self.top_k}.")
        if not 0.0 < self.mass <= 1.0:
            raise RequestError(f"`mass` must be above 0 and at most 1, not {self.mass}.")
        if not 0.0 <= self.floor < 1.0:
            raise RequestError(f"`floor` must be at least 0 and below 1, not {self.floor}.")
        if self.value_type not in get_args(ValueType):
            raise RequestError(
                f"`value_type` must be one of {', '.join(get_args(ValueType))}, not '{self.value_type}'."
            )


THIN = RowFormat(top_k=256, mass=1.0, value_type="bits12", floor=0.01)
"""The default that devices request: 31 bytes per row instead of 196,608 (benchmarks/row_coding.py)."""


@dataclass(frozen=True, eq=False, slots=True)
class SparseLogProbs:
    """One next-token distribution, truncated to its top K.

    Attributes:
        ids: (K,) int32, distinct token ids, ascending.
        log_probs: (K,) float32, natural log-probabilities (normalised over the whole vocabulary), each <= 0.
        tail_mass: probability of all tokens outside `ids`, in [0, 1].
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    tail_mass: float

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.shape != self.log_probs.shape:
            raise ValueError(f"ids {self.ids.shape} and log_probs {self.log_probs.shape} must be equal 1-D shapes")
        if self.ids.size == 0:
            raise ValueError("a sparse row needs at least one token")
        if self.ids[0] < 0 or (self.ids.size > 1 and int(np.diff(self.ids).min()) <= 0):
            raise ValueError("token ids must be distinct, ascending and not negative")
        if not np.isfinite(self.log_probs).all() or float(self.log_probs.max()) > 1e-3:
            raise ValueError("log-probabilities must be finite and not above 0")
        if not 0.0 <= self.tail_mass <= 1.0:
            raise ValueError(f"tail mass {self.tail_mass} is not in [0, 1]")


def sparsify(log_probs: NDArray[np.float32], form: RowFormat) -> SparseLogProbs:
    """Keep the fewest likeliest tokens whose mass reaches `form.mass`: at most `form.top_k`, none below `form.floor`.

    Args:
        log_probs: (V,) float32, normalised natural log-probabilities; -inf for impossible tokens.
        form: how to truncate; a mass of 1 and a floor of 0 keep exactly `top_k` tokens, or all if there are fewer.

    Returns:
        The kept tokens with unchanged values (only the wire applies `value_type`), and the mass of the rest. Ties go to
        the lowest ids.
    """
    whole = form.mass == 1.0 and form.floor == 0.0 and form.top_k >= log_probs.shape[0]
    found = np.flatnonzero(log_probs > -np.inf) if whole else likeliest(log_probs, form.top_k)
    kept = found.shape[0]
    if form.floor > 0.0:
        kept = max(int((log_probs[found] >= np.float32(math.log(form.floor))).sum()), 1)
    if form.mass < 1.0:
        reached = np.cumsum(np.exp(log_probs[found], dtype=np.float64))
        kept = min(int(np.searchsorted(reached, form.mass)) + 1, kept)
    ids = np.sort(found[:kept]).astype(np.int32)
    values = log_probs[ids].astype(np.float32)
    tail_mass = 1.0 - float(np.exp(values, dtype=np.float64).sum())
    if tail_mass < CANCELLATION:
        rest = np.exp(log_probs)
        rest[ids] = 0.0
        tail_mass = float(rest.sum(dtype=np.float64))
    return SparseLogProbs(ids, values, min(max(tail_mass, 0.0), 1.0))


def likeliest(log_probs: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """Return the ids of the `most` likeliest tokens, the likeliest first, ties by ascending id; never one of -inf."""
    size = log_probs.shape[0]
    floor = np.float32(-np.inf)
    block = _LARGE_BLOCK if 2 * _LARGE_BLOCK * most <= size else _BLOCK
    columns = size // block
    if most <= columns:
        # At least `most` columns have a maximum of `floor` or more, so the `most` likeliest tokens all reach `floor`.
        # Few tokens are left to sort, which is several times faster than partitioning the whole row.
        largest = log_probs[: columns * block].reshape(block, columns).max(axis=0)
        floor = np.partition(largest, columns - most)[columns - most]
    likely = np.flatnonzero(log_probs >= floor) if floor > -np.inf else np.flatnonzero(log_probs > floor)
    return likely[np.argsort(-log_probs[likely], kind="stable")[:most]]
