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
    weights = np.exp(scaled - scaled.max())
    nucleus, reached = _nucleus(weights, top_p * float(weights.sum()))
    point = rng.random() * reached[-1]
    return int(nucleus[min(int(np.searchsorted(reached, point, side="right")), nucleus.size - 1)])


def _nucleus(weights: NDArray[np.float64], mass: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The fewest likeliest tokens whose weights reach `mass`, and the sums up to each of them."""
    if mass >= weights.sum():
        return np.arange(weights.size), np.cumsum(weights)
    # Sorting a whole vocabulary takes as long as half a run of a small model; mostly a hundred tokens are enough.
    for floor in (1e-2, 1e-4, 0.0):
        likely = np.flatnonzero(weights >= floor)
        likely = likely[np.argsort(-weights[likely], kind="stable")]
        reached = np.cumsum(weights[likely])
        if reached[-1] >= mass:
            break
    # The token that crosses the mass belongs to the nucleus.
    size = min(int(np.searchsorted(reached, mass)) + 1, likely.size)
    return likely[:size], reached[:size]
