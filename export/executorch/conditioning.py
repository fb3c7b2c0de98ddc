"""Finds how each input of an ExecuTorch decoder is made fit for 8 bits a token.

XNNPACK gives a token's values one scale, so a few large channels leave the others few of its 256 steps. Dividing the
blocks of an input by how large they grow, and multiplying the weights, evens that out at no cost (SmoothQuant, Xiao et
al., ICML 2023, arXiv 2211.10438, equation 4; by blocks, because a block's scale is all that can change of a GGUF
file's weights without rounding them again). The largest channels of all stay out of the rounding (LLM.int8(), Dettmers
et al., NeurIPS 2022, arXiv 2208.07339).
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
"""Columns of an input that are not rounded: each is a float32 number for every row of the weights.

What attention gives has no large channels.
"""
_COMMON = ("qkv", "gate_up")  # the same columns of these are large in all layers
STRENGTH = 0.65
"""Exponent of SmoothQuant: 0 leaves the input as it is, 1 makes all blocks equally large."""
_POWER = 4  # of the mean that says how large a channel grows: between its mean square and its maximum
_SMALLEST = 1e-4  # of a block's size, beside the largest
_WINDOWS, _TOKENS = 4, 256  # of calibration text


def condition(model: DecoderModel, windows: NDArray[np.int64], progress: Callable[[int, int], None]) -> None:
    """Condition every input of the decoder that is rounded.

    The head's input is only relieved of its largest channels: its 8-bit rows lose more by other scales than it gains.

    Args:
        model: the decoder; its weights are made anew.
        windows: (n, S) token ids of calibration text.
        progress: called with the steps done and all.
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
    """What to divide an input by, whose channels grow to `sizes` (K,), where `precise` of them are not rounded."""
    rest = sizes.copy()
    rest[precise] = 0
    blocks = rest.reshape(-1, BLOCK_SIZE).max(axis=1)
    relative = np.maximum(blocks / max(blocks.max(), np.finfo(np.float64).tiny), _SMALLEST)
    return np.repeat(relative**strength, BLOCK_SIZE).astype(np.float32)
