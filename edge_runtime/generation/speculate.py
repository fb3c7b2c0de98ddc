"""The decisions of speculative fused decoding, as pure functions over arrays.

One round of the algorithm (`edge_runtime.generation.loop` runs it):

1. draft: the edge model drafts tokens from its own rows;
2. verify: the cloud scores the whole draft in one pass;
3. fuse: at each position both rows are fused into one, and a token is chosen from it (`fused_row`, `choose`);
4. settle: the draft is accepted up to the first position where another token is chosen; that token is kept (`settle`);
5. rewind: both models drop the draft after that token.

Drafts and choices use the same noise (`edge_runtime.generation.sampling`), so a choice depends only on its position and
its two rows. For any window, the answer is token for token the same as with one round trip per token. In speculative
sampling (Leviathan et al. 2023, "Fast inference from transformers via speculative decoding"), drafts are accepted at
random and the distribution is corrected afterwards. Here a rejected draft costs time but never changes the answer.

V is the size of the vocabulary; all rows are natural log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.fuse import Fusion, fuse
from edge_runtime.fusion.sparse import SparseLogProbs
from edge_runtime.generation.sampling import Sampling, choose


@dataclass(frozen=True, eq=False, slots=True)
class PositionRows:
    """Both models' rows for one position of the answer.

    Attributes:
        edge: (V,) float32, from the edge model with the private context.
        cloud: the cloud's likeliest tokens; None if the edge decides alone.
        without: (V,) float32, from the edge model without the private context, if the fusion needs it.
    """

    edge: NDArray[np.float32]
    cloud: SparseLogProbs | None = None
    without: NDArray[np.float32] | None = None


class Settled(NamedTuple):
    """The tokens that one round adds to the answer.

    Attributes:
        tokens: the accepted part of the draft. Unless the rows ended there, one more choice follows: it replaces the
            next drafted token or extends the draft.
        accepted: number of them that were drafted.
    """

    tokens: tuple[int, ...]
    accepted: int

    @property
    def keeps_draft(self) -> bool:
        """Whether the rest of the draft remains valid, because only drafted tokens were settled."""
        return self.accepted == len(self.tokens)


def settle(
    draft: Sequence[int], rows: Sequence[PositionRows], answer: Sequence[int], fusion: Fusion, sampling: Sampling
) -> Settled:
    """Accept the draft up to the first position where the fused choice is another token.

    Args:
        draft: tokens for the positions from len(answer) onwards.
        rows: rows of the same positions, 1 to len(draft) + 1 of them. Row i was computed after `answer` and the first i
            tokens of the draft, so it is valid only if these are accepted.
        answer: the tokens settled so far.
        fusion: how the rows of a position are fused into one.
        sampling: how a token is chosen from the fused row.

    Returns:
        1 to len(rows) tokens.
    """
    tokens: list[int] = []
    for offset, row in enumerate(rows):
        position = len(answer) + offset
        written = (*answer, *tokens) if sampling.looks_back else ()
        token = choose(fused_row(row, fusion, position), position, sampling, written)
        tokens.append(token)
        if offset == len(draft) or token != draft[offset]:
            return Settled(tuple(tokens), accepted=offset)
    return Settled(tuple(tokens), accepted=len(tokens))


def fused_row(row: PositionRows, fusion: Fusion, position: int) -> NDArray[np.float32]:
    """Return the (V,) float32 row for choosing the token at `position`; the edge's own if the cloud has none."""
    return row.edge if row.cloud is None else fuse(row.edge, row.cloud, fusion, row.without, position)
