"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 8.0


class Backoff:
    """Exponential back-off with full jitter, so that devices which lost the same cloud don't return all at once.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog 2015 ("full jitter"), with a floor.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        """Start with the shortest wait; `uniform` draws a number between two."""
        self._uniform = uniform
        self._failures = 0

    def next_seconds(self, at_least: float = 0.0) -> float:
        """Seconds to wait after one more failure; `at_least` is what the other side asked for."""
        longest = min(FIRST_SECONDS * 2**self._failures, LONGEST_SECONDS)
        self._failures = min(self._failures + 1, 16)
        return at_least + self._uniform(longest / 4, longest)

    def reset(self) -> None:
        """It worked: the next wait is short again."""
        self._failures = 0
