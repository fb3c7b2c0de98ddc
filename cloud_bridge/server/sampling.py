"""Chooses the next token of the cloud's own answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def choose(log_probs: NDArray[np.float32], temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Take the likeliest token, or draw one.

    Args:
        log_probs: (V,) float32 natural log-probabilities.
        temperature: 0 takes the likeliest; else log-probabilities are divided by it.
        top_p: draws from the smallest set of likeliest tokens whose mass reaches it (Holtzman et al. 2020).
        rng: makes the draw.

    Returns:
        A token id.
    """
    # A temperature so small that dividing by it overflows is greedy.
    if temperature < 1e-4:
        return int(log_probs.argmax())
    scaled = log_probs.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled[order[0]])
    cumulative = np.cumsum(weights / weights.sum())
    # The token that crosses top_p belongs to the nucleus.
    size = min(int(np.searchsorted(cumulative, top_p)) + 1, order.size)
    point = rng.random() * cumulative[size - 1]
    return int(order[min(int(np.searchsorted(cumulative[:size], point, side="right")), size - 1)])
