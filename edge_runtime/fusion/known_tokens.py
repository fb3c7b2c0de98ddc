"""Leaves ids without a token out of a model's rows.

Models pad their vocabulary to a round size (Qwen2.5: 151,936 rows for 151,665 tokens), and some leave ids out in the
middle. Such an id has no text, so it must never be drawn. Rows are cut behind the last token; ids without a token
before it get no probability. All log-probs are then those of a model without these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import SparseLogProbs

NEVER = np.float32(-1e4)
"""Logit of an id without a token on the device: its probability is 0, and fusion can still calculate with it."""
IMPOSSIBLE = np.float32(-np.inf)
"""The same in the cloud, whose rows leave impossible tokens out."""


@dataclass(frozen=True, eq=False, slots=True)
class KnownTokens:
    """The ids that have a token.

    Attributes:
        size: width of a row: one more than the largest id with a token.
        holes: (n,) int64, the ids below `size` without a token, ascending.
    """

    size: int
    holes: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, ids: NDArray[np.int64]) -> KnownTokens:
        """Return the known tokens with these ids: (n,), ascending, at least one.

        Raises:
            ValueError: there are none.
        """
        if not ids.size:
            raise ValueError("no id has a token")
        known = np.zeros(int(ids[-1]) + 1, np.bool_)
        known[ids] = True
        return cls(known.size, np.flatnonzero(~known))

    @classmethod
    def all(cls, size: int) -> KnownTokens:
        """Return the known tokens of a vocabulary in which every id has a token."""
        return cls(size, np.empty(0, np.int64))

    def has(self, token_ids: Sequence[int]) -> bool:
        """Return whether all of these ids have a token."""
        inside = all(0 <= token < self.size for token in token_ids)
        return inside and not (self.holes.size and bool(np.isin(self.holes, np.array(token_ids, np.int64)).any()))

    def log_probs(self, logits: NDArray[np.float32], hole: np.float32 = NEVER) -> NDArray[np.float32]:
        """Normalise a model's logits over the known tokens.

        Args:
            logits: (..., rows of the model) float32; entries of holes are overwritten.
            hole: logit of ids without a token, `NEVER` or `IMPOSSIBLE`.

        Returns:
            (..., size) float32 log-probabilities.
        """
        logits = logits[..., : self.size]
        if self.holes.size:
            logits[..., self.holes] = hole
        return log_softmax(logits)

    def only(self, row: SparseLogProbs) -> SparseLogProbs | None:
        """Remove ids without a token from another model's row, and normalise the rest.

        Clouds of version 0.1 send such ids.

        Returns:
            The row; None if it has no known token, or has an id outside the vocabulary.
        """
        if int(row.ids[-1]) >= self.size:
            return None
        if not self.holes.size or not (unknown := np.isin(row.ids, self.holes)).any():
            return row
        left = 1.0 - float(np.exp(row.log_probs[unknown], dtype=np.float64).sum())
        if unknown.all() or left <= 0.0:
            return None
        values = np.minimum(row.log_probs[~unknown] - np.float32(np.log(left)), np.float32(0.0))
        return SparseLogProbs(row.ids[~unknown], values, min(row.tail_mass / left, 1.0))
