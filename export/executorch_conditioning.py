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

from export.executorch_linear import Conditioning, SharedLinears
from export.quantize import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from export.executorch_model import DecoderModel

PRECISE = 3
"""Columns of an input that are not rounded: each is a float32 number for every row of the weights."""
STRENGTH = 0.75
"""Exponent of SmoothQuant: 0 leaves the input as it is, 1 makes all blocks equally large."""
_POWER = 4  # of the mean that says how large a channel grows: between its mean square and its maximum
_SMALLEST = 1e-4  # of a block's size, beside the largest
_EVEN = ".o"  # what attention gives has no large channels
_WINDOWS, _TOKENS = 4, 256  # of calibration text


def condition(model: DecoderModel, windows: NDArray[np.int64], progress: Callable[[int, int], None]) -> None:
    """Condition every input of the decoder that is rounded.

    The head's input is only relieved of its largest channels: its 8-bit rows lose more by other scales than it gains.

    Args:
        model: the decoder; its weights are made anew.
        windows: (n, S) token ids of calibration text.
        progress: called with the steps done and all.
    """
    sites = {name: module for name, module in model.named_modules() if isinstance(module, SharedLinears)}
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
    for name, module in sites.items():
        sizes = (sums[name] ** (1 / _POWER)).numpy()
        strength = STRENGTH if name.startswith("layers.") else 0.0
        module.condition(conditioning_of(sizes, strength, 0 if name.endswith(_EVEN) else PRECISE))
    progress(len(windows), len(windows))


def conditioning_of(sizes: NDArray[np.float64], strength: float, precise: int) -> Conditioning:
    """What to do with an input whose channels grow to `sizes` (K,)."""
    largest = np.sort(np.argsort(-sizes, kind="stable")[:precise])
    rest = sizes.copy()
    rest[largest] = 0
    blocks = rest.reshape(-1, BLOCK_SIZE).max(axis=1)
    relative = np.maximum(blocks / max(blocks.max(), np.finfo(np.float64).tiny), _SMALLEST)
    return Conditioning(np.repeat(relative**strength, BLOCK_SIZE).astype(np.float32), largest)
