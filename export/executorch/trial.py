"""Runs a finished ExecuTorch program against the model it was made from: lowering has gone wrong without a word."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from edge_runtime.decoders.executorch_program import load_runtime, quiet
from export.errors import ConformanceError

if TYPE_CHECKING:
    from pathlib import Path

    from export.executorch.model import DecoderModel
    from export.model.architecture import Architecture

TOLERANCE = 0.5
"""Largest root mean square of the difference, as a share of the logits' spread.

Garbage makes 1.4. Where inputs are rounded to 8 bits, sums in another order change some of the codes, which a deep
model makes as much of as of the rounding itself: up to 0.3.
"""

_TOKENS = 12


def try_program(path: Path, model: DecoderModel) -> float:
    """Feed both the same tokens with the same adapter, then another token at an earlier position.

    Args:
        path: the `.pte` file.
        model: the decoder that it was made from.

    Returns:
        The larger of the two calls' errors; see `TOLERANCE`.

    Raises:
        ConformanceError: the program doesn't load, doesn't run, or says something else than the model.
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


def _caches(a: Architecture, capacity: int) -> list[torch.Tensor]:
    return [torch.zeros(1, capacity, a.kv_heads, a.head_dim) for _ in range(2 * a.layers)]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over the standard deviation; not finite where a logit isn't."""
    return float((found - expected).square().mean().sqrt() / expected.std())


def _wrong(path: Path, problem: str) -> ConformanceError:
    return ConformanceError(
        f"The program that was made {problem}: {path.name}. Nothing was kept. Use --quantize fp32 or another runtime."
    )
