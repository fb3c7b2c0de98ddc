"""Speculative fused decoding, the part that decides: pure functions over arrays.

One round of the algorithm (`edge_runtime.generation.loop` runs it):

1. draft: the edge model writes tokens ahead, from its own rows;
2. verify: the cloud scores the whole draft in one pass;
3. fuse: at each position both rows become one, and a token is chosen from it (`fused_row`, `choose`);
4. settle: the draft is accepted up to the first position where another token is chosen, which is kept too (`settle`);
5. rewind: both models forget what was drafted behind that token.

Drafts and choices use the same noise (`edge_runtime.generation.sampling`), so a choice depends on its position and its
two rows alone: the answer is token for token that of one round trip per token, for any window. In speculative sampling
(Leviathan et al. 2023, "Fast inference from transformers via speculative decoding") drafts are accepted by chance and
the distribution is corrected afterwards. Here a rejected draft costs time and never changes the answer.

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
    """What the models say about one position of the answer.

    Attributes:
        edge: (V,) float32, of the edge model with the private context.
        cloud: the cloud's likeliest tokens; None where the edge decides alone.
        without: (V,) float32, of the edge model without the private context, where the fusion needs it.
    """

    edge: NDArray[np.float32]
    cloud: SparseLogProbs | None = None
    without: NDArray[np.float32] | None = None


class Settled(NamedTuple):
    """The tokens that one round adds to the answer.

    Attributes:
        tokens: the accepted part of the draft; then, unless the rows ended there, the choice that replaces the next
            drafted token or goes beyond the draft.
        accepted: how many of them were drafted.
    """

    tokens: tuple[int, ...]
    accepted: int

    @property
    def keeps_draft(self) -> bool:
        """Whether the rest of the draft still stands, because nothing but drafted tokens was settled."""
        return self.accepted == len(self.tokens)


def settle(
    draft: Sequence[int], rows: Sequence[PositionRows], answer: Sequence[int], fusion: Fusion, sampling: Sampling
) -> Settled:
    """Accept the draft up to the first position where the fused choice is another token.

    Args:
        draft: tokens for the positions from len(answer) on.
        rows: of the same positions, 1 to len(draft) + 1 of them. Row i was computed behind `answer` and the first i
            tokens of the draft, so it holds only while these are accepted.
        answer: the tokens settled so far.
        fusion: how the rows of a position become one.
        sampling: how a token is chosen from it.

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
    """The row from which the token at `position` is chosen, (V,) float32; the edge's own where the cloud has none."""
    return row.edge if row.cloud is None else fuse(row.edge, row.cloud, fusion, row.without, position)
