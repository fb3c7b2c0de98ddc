"""How many threads a decoder uses unless told otherwise."""

from __future__ import annotations

import os

# Decoding is bound by memory bandwidth; beyond this more threads cost battery and give nothing.
MAX_DEFAULT_THREADS = 8


def default_threads() -> int:
    """Cores that this process may use, at most `MAX_DEFAULT_THREADS`."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(usable, MAX_DEFAULT_THREADS)
