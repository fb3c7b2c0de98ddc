"""From logits to log-probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CANCELLATION = 1e-3
"""Below this, 1 - sum(others) has lost its digits and a mass is summed itself."""


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise in log space.

    Args:
        logits: (..., V) float32; also unnormalised log-probabilities.

    Returns:
        Same shape, float32; exp of each row sums to 1.
    """
    shifted: NDArray[np.float32] = logits - logits.max(axis=-1, keepdims=True)
    # float32 sums over 150k words lose digits; the sum alone is kept in double.
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def mass_outside(log_probs: NDArray[np.float32], ids: NDArray[np.integer]) -> float:
    """Probability of all tokens but these.

    Args:
        log_probs: (V,) float32, normalised.
        ids: distinct tokens.
    """
    mass = 1.0 - float(np.exp(log_probs[ids], dtype=np.float64).sum())
    if mass < CANCELLATION:
        probabilities = np.exp(log_probs, dtype=np.float64)
        probabilities[ids] = 0.0
        mass = float(probabilities.sum())
    return mass
