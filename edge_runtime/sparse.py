"""Sparse log-probabilities: the K likeliest tokens of a row and the mass of all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RequestError

ValueType = Literal["float32", "float16", "byte"]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a cloud cuts and codes its rows.

    Attributes:
        top_k: the most tokens of a row.
        mass: a row keeps the fewest likeliest tokens whose probabilities sum to this, at most `top_k`; 1 keeps `top_k`.
        value_type: "float32" is exact, "float16" takes half the bytes, "byte" a quarter.
    """

    top_k: int = 256
    mass: float = 1.0
    value_type: ValueType = "float32"

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise RequestError(f"top_k must be at least 1, not {self.top_k}.")
        if not 0.0 < self.mass <= 1.0:
            raise RequestError(f"The mass of a row must lie above 0 and at most 1, not {self.mass}.")
        if self.value_type not in ("float32", "float16", "byte"):
            raise RequestError(f"There is no value type '{self.value_type}'. Use one of: float32, float16, byte.")


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


def sparsify(log_probs: NDArray[np.float32], k: int) -> SparseLogProbs:
    """Keep the `k` likeliest tokens of a dense row.

    Args:
        log_probs: (V,) float32, normalised natural log-probabilities.
        k: how many tokens to keep; all are kept where k >= V.

    Returns:
        The top `k` and the mass of the rest, 1 - sum(exp(kept)).
    """
    k = min(k, log_probs.shape[0])
    ids = np.sort(np.argpartition(log_probs, -k)[-k:]).astype(np.int32)
    kept = log_probs[ids].astype(np.float32)
    tail = 0.0 if k == log_probs.shape[0] else 1.0 - float(np.exp(kept.astype(np.float64)).sum())
    return SparseLogProbs(ids, kept, min(max(tail, 0.0), 1.0))
