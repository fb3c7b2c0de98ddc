"""Sets the precision in which a model computes during training; its weights are always float32."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Precision of matrix products: float32, or bfloat16, which takes half the time on hardware that supports it."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def computing_in(precision: Precision, device: str) -> torch.autocast:
    """Return a context in which models compute with this precision.

    Args:
        precision: the precision.
        device: "cpu", "cuda" or "cuda:1".
    """
    import torch

    half = precision is Precision.BFLOAT16
    # No cache: it could hold copies of weights from a block without gradients.
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=half, cache_enabled=False)
