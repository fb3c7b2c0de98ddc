"""Where a model runs."""

from __future__ import annotations

from enum import StrEnum


class Device(StrEnum):
    """Where a model runs: on the processor, or on a GPU (in each process on one of its own)."""

    CPU = "cpu"
    CUDA = "cuda"
