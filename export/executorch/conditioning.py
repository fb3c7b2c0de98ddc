"""Finds how to condition each input of an ExecuTorch decoder for 8-bit rounding per token.

XNNPACK uses one scale per token, so a few large channels leave the others only few of the 256 steps. We divide each
block of an input by its size and multiply the weights, which costs nothing at run time (SmoothQuant, Xiao et al., ICML
2023, arXiv 2211.10438, equation 4). We scale whole blocks, because only block scales of a GGUF file can change without
rounding its weights again. The largest channels are not rounded (LLM.int8(), Dettmers et al., NeurIPS 2022, arXiv
2208.07339).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from export.executorch.linear import Conditioning, JoinedLinear
from export.model.quantized_matrix import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from export.executorch.model import DecoderModel

PRECISE = {"qkv": 4, "o": 0, "gate_up": 4, "down": 3, "head": 3}
"""Number of input columns that are not rounded; each costs one float32 value per row of the weights.

The output of attention has no large channels.
"""
_COMMON = ("qkv", "gate_up")  # their large columns are the same in all layers
STRENGTH = 0.65
"""Exponent of SmoothQuant: 0 leaves the input as it is, 1 makes all blocks equally large."""
_POWER = 4  # exponent of the power mean that measures a channel: between its mean square and its maximum
_SMALLEST = 1e-4  # lower bound of a block's size relative to the largest
_WINDOWS, _TOKENS = 4, 256  # size of the calibration text


def condition(model: DecoderModel, windows: NDArray[np.int64], progress: Callable[[int, int], None]) -> None:
    """Condition every rounded input of the decoder.

    The head's input only loses its largest channels: scaling it would cost the head's 8-bit rows more than it gains.

    Args:
        model: the decoder; its weights are rebuilt.
        windows: (n, S) token ids of calibration text.
        progress: called with (steps done, steps).
    """
    sites = {name: module for name, module in model.named_modules() if isinstance(module, JoinedLinear)}
    sites = {name: module for name, module in sites.items() if module.rounds}
    if not sites:
        return
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor]], None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            sums[name] = sums.get(name, 0) + (inputs[0][0].double() ** _POWER).sum(0)

        return add

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in sites.items()]
    windows = windows[:: max(1, len(windows) // _WINDOWS)][:_WINDOWS, :_TOKENS]
    with torch.no_grad():
        for done, window in enumerate(windows):
            progress(done, len(windows))
            model.read(torch.from_numpy(window))
    for handle in handles:
        handle.remove()
    sizes = {name: (total ** (1 / _POWER)).numpy() for name, total in sums.items()}
    for name, module in sites.items():
        kind = name.rpartition(".")[2]
        weights = sizes[name]
        if kind in _COMMON:
            alike = [found / found.max() for other, found in sizes.items() if other.endswith(f".{kind}")]
            weights = np.mean(alike, axis=0)
        precise = np.sort(np.argsort(-weights, kind="stable")[: PRECISE[kind]])
        strength = STRENGTH if name.startswith("layers.") else 0.0
        module.condition(Conditioning(block_scales(sizes[name], strength, precise), precise, kind in _COMMON))
    progress(len(windows), len(windows))


def block_scales(sizes: NDArray[np.float64], strength: float, precise: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute the divisors (K,) of an input from its channels' `sizes` (K,); `precise` channels are not rounded."""
    rest = sizes.copy()
    rest[precise] = 0
    blocks = rest.reshape(-1, BLOCK_SIZE).max(axis=1)
    relative = np.maximum(blocks / max(blocks.max(), np.finfo(np.float64).tiny), _SMALLEST)
    return np.repeat(relative**strength, BLOCK_SIZE).astype(np.float32)
