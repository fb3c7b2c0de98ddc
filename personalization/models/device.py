"""Names the devices that a model can run on."""

from __future__ import annotations

from enum import StrEnum


class Device(StrEnum):
    """Where a model runs: on the CPU, or on a GPU (each process uses its own)."""

    CPU = "cpu"
    CUDA = "cuda"
