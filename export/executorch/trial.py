"""Compares a finished ExecuTorch program with its model, because lowering can go wrong without an error."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from edge_runtime.decoders.executorch_program import load_runtime, quiet
from export.errors import ConformanceError
from export.executorch.model import DecoderModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from export.model.architecture import Architecture

TOLERANCE = 0.5
"""Largest allowed root mean square of the difference, relative to the logits' standard deviation.

Unrelated logits give 1.4. If inputs are rounded to 8 bits, another order of sums changes some of the codes. A deep
model amplifies this as much as the rounding itself, up to 0.3.
"""

_TOKENS = 12


def try_program(path: Path, model: DecoderModel) -> float:
    """Feed program and model the same tokens and adapter, then another token at an earlier position.

    Args:
        path: the `.pte` file.
        model: the decoder that the program was made from.

    Returns:
        The larger error of the two calls; see `TOLERANCE`.

    Raises:
        ConformanceError: the program doesn't load, doesn't run, or differs from the model.
    """
    architecture = model.architecture
    generator = torch.Generator().manual_seed(0)
    count = min(_TOKENS, architecture.context_length)
    adapter = [
        torch.randn(shape, generator=generator) * 0.1 * shape[1] ** -0.5
        for _ in range(architecture.layers)
        for rank, site in enumerate(model.lora_sites, start=1)
        for shape in ((1, site.in_features, rank), (1, rank, sum(width for _, width in site.projections)))
    ]
    runtime, _ = load_runtime()
    try:
        with quiet():
            program = runtime._load_for_executorch(str(path))
    except RuntimeError as error:
        raise _wrong(path, f"can't be loaded ({error})") from None
    expected_caches, caches = _caches(architecture, count), _caches(architecture, count)
    errors = []
    for positions in (torch.arange(count), torch.tensor([count // 2])):
        token_ids = torch.randint(architecture.vocab, (1, len(positions)), generator=generator)
        inputs = token_ids, positions, torch.arange(len(positions))
        with torch.no_grad():
            expected = model(*inputs, expected_caches, adapter)
        try:
            with quiet():  # the first call loads the method
                (found,) = program.forward((*inputs, *caches, *adapter))
        except RuntimeError as error:
            raise _wrong(path, f"can't be run ({error})") from None
        errors.append(_error(found, expected))
    if not max(errors) <= TOLERANCE or not all(map(math.isfinite, errors)):
        raise _wrong(path, f"differs from the model by {max(errors):.2g} of the logits' spread (allowed {TOLERANCE})")
    return max(errors)


@contextmanager
def opened_model(
    architecture: Architecture, read: Callable[[str], NDArray[np.float32]]
) -> Iterator[tuple[_Sequence, Callable[[Sequence[int]], Mapping[int, NDArray[np.float32]]]]]:
    """Open the decoder that programs are made from, in torch, for a check against the source.

    Args:
        architecture: the decoder's shape.
        read: returns a weight by its Hugging Face name.

    Yields:
        A sequence of its tokens, and a function that returns what enters its layers for a text.
    """
    model = DecoderModel(architecture, read, read, "qkv")

    def layer_inputs(token_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = []
        handles = [
            layer.register_forward_pre_hook(lambda _, args: found.append(args[0][0].numpy().copy()))
            for layer in model.layers
        ]
        _Sequence(model).extend(token_ids)
        for handle in handles:
            handle.remove()
        return dict(enumerate(found))

    yield _Sequence(model), layer_inputs


class _Sequence:
    """Feeds tokens to the torch model as a device feeds them to its program."""

    def __init__(self, model: DecoderModel) -> None:
        self._model, self._length = model, 0
        self._caches = _caches(model.architecture, model.architecture.context_length)

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """See `edge_runtime.decoders.protocol.Decoder.extend`."""
        count = len(token_ids)
        positions = torch.arange(self._length, self._length + count)
        wanted = torch.arange(count - rows, count)
        with torch.no_grad():
            logits = self._model(torch.tensor([list(token_ids)]), positions, wanted, self._caches, ())
        self._length += count
        found: NDArray[np.float32] = logits[0].numpy()
        return found

    def rewind(self, length: int) -> None:
        """See `edge_runtime.decoders.protocol.Decoder.rewind`."""
        self._length = length


def _caches(a: Architecture, capacity: int) -> list[torch.Tensor]:
    return [torch.zeros(1, capacity, a.kv_heads, a.head_dim) for _ in range(2 * a.layers)]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Divide the root mean square difference by the standard deviation; not finite if a logit isn't."""
    return float((found - expected).square().mean().sqrt() / expected.std())


def _wrong(path: Path, problem: str) -> ConformanceError:
    return ConformanceError(
        f"The program that was made {problem}: {path.name}. Nothing was kept. Use `quantize` fp32, or another runtime."
    )
