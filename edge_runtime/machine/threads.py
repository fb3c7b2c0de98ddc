"""Chooses a decoder's default number of threads."""

from __future__ import annotations

import os

# Decoding is bound by memory bandwidth, so more threads than this only cost battery.
MAX_DEFAULT_THREADS = 8


def default_threads() -> int:
    """Return the number of cores that this process may use, at most `MAX_DEFAULT_THREADS`."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(usable, MAX_DEFAULT_THREADS)
