"""Speculative fused decoding: what a draft and the rows of both models settle, as pure functions over arrays.

The edge drafts tokens with its own distribution; the cloud scores all of them at once; the edge fuses each pair of rows
and keeps the draft up to the first position where the fused choice is another token. Drafts and fused choices use the
same noise (`edge_runtime.generation.sampling`), so a choice depends on its position and the two rows alone: the answer
is token for token that of one round trip per token, for any window. Unlike in speculative sampling (Leviathan et al.
2023), no draft is accepted by chance and no distribution is corrected: a rejected draft costs time, never another
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.fuse import Fusion, fuse
from edge_runtime.fusion.sparse import SparseLogProbs
from edge_runtime.generation.sampling import Sampling, choose


@dataclass(frozen=True, eq=False, slots=True)
class PositionRows:
    """What is known about one position of the answer.

    Attributes:
        edge: (V,) float32 log-probabilities of the edge model with the private context.
        cloud: the cloud's top tokens; None where the edge decides alone.
        without: (V,) float32 log-probabilities of the edge model without the context, where fusion needs them.
    """

    edge: NDArray[np.float32]
    cloud: SparseLogProbs | None = None
    without: NDArray[np.float32] | None = None


def settle(
    draft: Sequence[int], rows: Sequence[PositionRows], answer: Sequence[int], fusion: Fusion, sampling: Sampling
) -> list[int]:
    """Settle the positions that follow `answer`, up to the first that differs from the draft.

    Args:
        draft: tokens guessed for the positions from len(answer) on.
        rows: of the same positions; row i was computed behind `answer` and the first i tokens of the draft, so at
            most len(draft) + 1 of them.
        answer: the tokens settled so far.
        fusion: how two rows become one.
        sampling: how a token is chosen from it.

    Returns:
        At most len(rows) tokens: the draft as far as it holds, then the choice that differs from it or goes beyond it.
    """
    settled: list[int] = []
    for position, row in enumerate(rows):
        step = len(answer) + position
        fused = row.edge if row.cloud is None else fuse(row.edge, row.cloud, fusion, row.without, step)
        written = (*answer, *settled) if sampling.looks_back else ()
        token = choose(fused, step, sampling, written)
        settled.append(token)
        if position == len(draft) or token != draft[position]:
            break
    return settled
