"""Feeds a decoder as a device does, in chunks and one by one, and measures how far it is from its reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from export.errors import WrongExportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALONE = 4
"""Tokens on each side of a boundary that are fed one by one."""


class Sequential(Protocol):
    """The part of `edge_runtime.decoders.protocol.Decoder` that a check needs."""

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Feed tokens and return the logits of the last `rows` of them."""
        ...

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens."""
        ...


def decoder_rows(decoder: Sequential, token_ids: Sequence[int], boundaries: Sequence[int] = ()) -> NDArray[np.float32]:
    """Compute the logits of all positions: (S, vocab_size).

    Args:
        decoder: its cache is cleared first.
        token_ids: S tokens.
        boundaries: positions; the tokens around each, and the last ones, are fed one by one, the others together.
    """
    decoder.rewind(0)
    ends = (*boundaries, len(token_ids))
    alone = {position for end in ends for position in range(end - ALONE, end + ALONE) if 0 < position < len(token_ids)}
    rows, start = [], 0
    for stop in range(1, len(token_ids) + 1):
        if stop in alone or stop - 1 in alone or stop == len(token_ids):
            rows.append(decoder.extend(token_ids[start:stop], rows=stop - start))
            start = stop
    return np.concatenate(rows)


def noise(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the difference of two (S, V) arrays, in standard deviations; 1.4 if they are unrelated.

    A model's answer does not change if all logits of a row do, so each row counts without its mean.
    """
    found, expected = (rows - rows.mean(axis=1, keepdims=True, dtype=np.float64) for rows in (found, expected))
    value = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
    return value if np.isfinite(value) else float("inf")


def refuse(what: str, value: float, tolerance: float, reference: str, layer: str, where: str) -> None:
    """Raise the error of a decoder that is further from its reference than the tolerance.

    Raises:
        WrongExportError: always.
    """
    raise WrongExportError(
        f"The exported decoder does not compute what {reference} computes: {where}. {what}, logits differ by "
        f"{value:.2g} of their spread, allowed are {tolerance:.2g}{layer}. Nothing was written. "
        "Please report this model; until it is mended, export another one."
    )
