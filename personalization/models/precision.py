"""What numbers a model computes with while it is trained; its weights are float32 in any case."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Of matrix products: float32, or bfloat16, which processors and GPUs that have it take half the time for."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def computing_in(precision: Precision, device: str) -> torch.autocast:
    """A block in which models compute with this precision.

    Args:
        precision: which.
        device: "cpu", "cuda" or "cuda:1".
    """
    import torch

    half = precision is Precision.BFLOAT16
    # No cache: it would hold copies of weights that were made where gradients don't go.
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=half, cache_enabled=False)
