"""A decoder that costs nothing and wants to write a given text: with it many answers go through the whole loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.decoders.protocol import Decoder, PromptCache


class ScriptedDecoder:
    """Behind a prompt it finds the next token of its script likeliest; at some positions another token.

    Args:
        script: what it wants to write; the last token comes again and again.
        begin: length of the prompt.
        others: what it prefers where it does not follow the script.
        astray: how often that is.
        seed: of the positions where it does not follow, and of the rest of each row.
    """

    context_length = 1 << 20
    fingerprint = "scripted"

    def __init__(
        self,
        vocab_size: int,
        script: Sequence[int],
        begin: int,
        *,
        others: Sequence[int] = (),
        astray: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self._script, self._begin, self._others = script, begin, others
        self._astray, self._seed = astray, seed
        self._tokens: list[int] = []

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def length(self) -> int:
        return len(self._tokens)

    def extend(self, token_ids: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        self._tokens += token_ids
        wanted = [self._row(self.length - rows + row) for row in range(1, rows + 1)]
        return np.array(wanted, np.float32).reshape(rows, self.vocab_size)

    def rewind(self, length: int) -> None:
        del self._tokens[length:]

    def use_adapter(self, adapter: Adapter | None) -> None:
        assert adapter is None

    def save(self, length: int | None = None) -> PromptCache:
        raise NotImplementedError("there is no KV state")

    def restore(self, cache: PromptCache) -> None:
        raise NotImplementedError("there is no KV state")

    def fork(self) -> Decoder:
        raise NotImplementedError("it has one sequence")

    def _row(self, length: int) -> NDArray[np.float64]:
        random = np.random.default_rng((self._seed, length))
        row = random.normal(size=self.vocab_size)
        at = max(length - self._begin, 0)
        script = self._others if self._others and random.random() < self._astray else self._script
        row[script[min(at, len(script) - 1)]] += 12
        return row
