"""The edge's side of a generation: its decoders, the draft after the settled answer, and their rows."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_runtime.decoders.protocol import Decoder
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.generation.pace import Measured
from edge_runtime.generation.sampling import Sampling, choose
from edge_runtime.generation.speculate import Settled


@dataclass(frozen=True, slots=True)
class PromptedDecoder:
    """A decoder, the prompt it continues, and the ids that its rows may offer."""

    decoder: Decoder
    prompt: tuple[int, ...]
    known: KnownTokens

    def prefill(self) -> NDArray[np.float32]:
        """Feed the prompt and return the log-probs after it: (V,) float32.

        A prefix that is already in the KV cache is not fed again. The last token is fed alone, as every token of the
        answer is. Quantised kernels round one row differently from several, and the first row must not depend on how
        much of the prompt was cached.
        """
        shared = 0
        for mine, theirs in zip(self.prompt[:-1], self.decoder.token_ids, strict=False):
            if mine != theirs:
                break
            shared += 1
        self.decoder.rewind(shared)
        if shared < len(self.prompt) - 1:
            self.decoder.extend(self.prompt[shared:-1], rows=0)
        return self._row(self.prompt[-1])

    def step(self, token: int, position: int) -> NDArray[np.float32]:
        """Feed the token at `position` of the answer, drop everything after it, and return the log-probs after it."""
        self.decoder.rewind(len(self.prompt) + position)
        return self._row(token)

    def rewind(self, length: int) -> None:
        """Drop everything after the first `length` tokens of the answer."""
        self.decoder.rewind(min(self.decoder.length, len(self.prompt) + length))

    def _row(self, token: int) -> NDArray[np.float32]:
        return self.known.log_probs(self.decoder.extend([token])[0])


class EdgeRow(NamedTuple):
    """The edge's log-probs at one position, each (V,) float32: with the private context and, if needed, without it."""

    own: NDArray[np.float32]
    without: NDArray[np.float32] | None


class Drafter:
    """Drafts tokens with the edge model alone.

    Every token is fed in its own step, whatever the window. So the edge's rows, and with them the answer, don't depend
    on how drafts were grouped.

    Attributes:
        answer: the settled tokens.
        draft: the tokens drafted after them.
        rows: row i predicts the token after `answer` and the first i tokens of `draft`.
        log_probs: log-prob of each token of `answer` and `draft` in the edge's own rows.
    """

    def __init__(
        self, edge: PromptedDecoder, without: PromptedDecoder | None, sampling: Sampling, measured: Measured
    ) -> None:
        self._edge = edge
        self._without = without
        self._sampling = sampling
        self._measured = measured
        self.answer: list[int] = []
        self.draft: list[int] = []
        self.rows: deque[EdgeRow] = deque()
        self.log_probs: list[float] = []

    @property
    def length(self) -> int:
        """Number of tokens in the answer and its draft."""
        return len(self.answer) + len(self.draft)

    @property
    def last(self) -> int:
        """The last token of the answer and its draft."""
        return (self.draft or self.answer)[-1]

    def prefill(self) -> None:
        """Prefill the prompts and append the first position's row."""
        self.rows.append(EdgeRow(self._edge.prefill(), self._without.prefill() if self._without else None))

    def propose(self) -> int:
        """Draft the next token from the last row."""
        row = self.rows[-1].own
        written = (*self.answer, *self.draft) if self._sampling.looks_back else ()
        token = choose(row, self.length, self._sampling, written)
        self.draft.append(token)
        self.log_probs.append(float(row[token]))
        self._measured.drafted += 1
        return token

    def step(self) -> None:
        """Feed the last token and append the row after it."""
        started = time.perf_counter()
        token, position = self.last, self.length - 1
        own = self._edge.step(token, position)
        self.rows.append(EdgeRow(own, self._without.step(token, position) if self._without else None))
        self._measured.step(time.perf_counter() - started)

    def settle(self, settled: Settled) -> None:
        """Move tokens to the answer; if the draft was rejected, drop the rest of it, and the caller must `step`."""
        tokens = settled.tokens
        if settled.keeps_draft:
            del self.draft[: len(tokens)]
            for _ in tokens:
                self.rows.popleft()
        else:
            row = self.rows[settled.accepted].own
            self.log_probs[len(self.answer) + settled.accepted :] = [float(row[tokens[-1]])]
            self.draft.clear()
            self.rows.clear()
        self.answer += tokens

    def rewind(self) -> None:
        """Remove the draft from the KV caches, so that their state after an answer does not depend on the window."""
        for one in (self._edge, self._without):
            if one is not None:
                one.rewind(len(self.answer))
