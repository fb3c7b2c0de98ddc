"""Sparse log-probabilities: the K likeliest tokens of a row and the mass of all the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RequestError

ValueType = Literal["float32", "float16", "bits12"]

# Below this, 1 - sum(kept) has lost its digits and the tail is summed itself.
_CANCELLATION = 1e-3
_BLOCK, _LARGE_BLOCK = 16, 64


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a cloud cuts and codes its rows. The defaults are exact for the tokens that are kept; `THIN` is not.

    Attributes:
        top_k: the most tokens of a row.
        mass: a row keeps the fewest likeliest tokens whose probabilities sum to this, at most `top_k`; 1 keeps `top_k`.
        value_type: "float32" is exact; "float16" and "bits12", 16 and 12 bits, change no choice in thousands.
        floor: tokens less likely than this are left out, except the likeliest; 0 leaves none out.
    """

    top_k: int = 256
    mass: float = 1.0
    value_type: ValueType = "float32"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise RequestError(f"top_k must be at least 1, not {self.top_k}.")
        if not 0.0 < self.mass <= 1.0:
            raise RequestError(f"The mass of a row must lie above 0 and at most 1, not {self.mass}.")
        if not 0.0 <= self.floor < 1.0:
            raise RequestError(f"The floor of a row must be at least 0 and below 1, not {self.floor}.")
        if self.value_type not in get_args(ValueType):
            raise RequestError(
                f"There is no value type '{self.value_type}'. Use one of: {', '.join(get_args(ValueType))}."
            )


THIN = RowFormat(top_k=256, mass=1.0, value_type="bits12", floor=0.01)
"""What devices ask for unless told otherwise: 31 bytes a row instead of 196,608 (benchmarks/row_coding.py)."""


@dataclass(frozen=True, eq=False, slots=True)
class SparseLogProbs:
    """One next-token distribution, cut to its top K.

    Attributes:
        ids: (K,) int32, distinct token ids, ascending.
        log_probs: (K,) float32, natural log-probabilities (normalised over the whole vocabulary), each <= 0.
        tail_mass: probability of all tokens that are not in `ids`, in [0, 1].
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
        log_probs: (V,) float32, normalised natural log-probabilities; -inf for tokens that can't come.
        form: how to cut; with a mass of 1 and a floor of 0 exactly `top_k` are kept, or all there are.

    Returns:
        The kept tokens as they were (`value_type` is the wire's business), and the mass of the rest. Of equally likely
        tokens those with the lowest ids are kept.
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
    if tail_mass < _CANCELLATION:
        rest = np.exp(log_probs)
        rest[ids] = 0.0
        tail_mass = float(rest.sum(dtype=np.float64))
    return SparseLogProbs(ids, values, min(max(tail_mass, 0.0), 1.0))


def likeliest(log_probs: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """Ids of the `most` likeliest tokens, the likeliest first, equals by ascending id; never one of -inf."""
    size = log_probs.shape[0]
    floor = np.float32(-np.inf)
    block = _LARGE_BLOCK if 2 * _LARGE_BLOCK * most <= size else _BLOCK
    columns = size // block
    if most <= columns:
        # `most` blocks have a largest entry of at least `floor`, so the `most` likeliest tokens all have: few are left
        # to sort, several times faster than to partition the whole row.
        largest = log_probs[: columns * block].reshape(block, columns).max(axis=0)
        floor = np.partition(largest, columns - most)[columns - most]
    likely = np.flatnonzero(log_probs >= floor) if floor > -np.inf else np.flatnonzero(log_probs > floor)
    return likely[np.argsort(-log_probs[likely], kind="stable")[:most]]
