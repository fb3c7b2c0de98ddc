"""The edge's side of a generation: its decoder, the draft behind the settled answer, and the rows of both."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.decoders.protocol import Decoder
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.generation.pace import Measured
from edge_runtime.generation.sampling import Sampling, choose


@dataclass(frozen=True, slots=True)
class PromptedDecoder:
    """A decoder and the prompt it continues."""

    decoder: Decoder
    prompt: tuple[int, ...]

    def prefill(self) -> NDArray[np.float32]:
        """Feed the prompt and return the log-probs after it: (V,) float32.

        What it shares with the tokens already in the KV cache is not fed again. The last token is fed alone, as all
        tokens of the answer are: quantised kernels round a single row otherwise than several, and the first row must
        not depend on how much of the prompt was there.
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
        """Feed the token at `position` of the answer, forgetting all behind it, and return the log-probs after it."""
        self.decoder.rewind(len(self.prompt) + position)
        return self._row(token)

    def keep(self, tokens: int) -> None:
        """Forget all behind the first `tokens` of the answer."""
        self.decoder.rewind(min(self.decoder.length, len(self.prompt) + tokens))

    def _row(self, token: int) -> NDArray[np.float32]:
        return log_softmax(self.decoder.extend([token])[0])


class Drafter:
    """Writes ahead with the edge model alone.

    Every token is fed by a step of its own, whatever the window: the edge's rows, and so the answer, can't depend on
    how drafts were grouped.
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
        # What the edge's rows gave the tokens of the answer and its draft.
        self.told: list[float] = []
        # Row i predicts the token behind `answer` and the first i tokens of the draft.
        self.rows: deque[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = deque()

    @property
    def length(self) -> int:
        """Tokens of the answer and its draft."""
        return len(self.answer) + len(self.draft)

    def prefill(self) -> None:
        """Read the prompts; the first position's row is then there."""
        self.rows.append((self._edge.prefill(), self._without.prefill() if self._without else None))

    def guess(self) -> int:
        """Draft the next token from the last row."""
        written = (*self.answer, *self.draft) if self._sampling.looks_back else ()
        token = choose(self.rows[-1][0], self.length, self._sampling, written)
        self.draft.append(token)
        self.told.append(float(self.rows[-1][0][token]))
        self._measured.drafted += 1
        return token

    def settle(self, tokens: Sequence[int]) -> bool:
        """Move settled tokens to the answer; where the last is not the draft's, the rest of the draft is dropped.

        Returns:
            Whether the draft went on as it was; else the last token is to be computed.
        """
        agreed = list(tokens) == self.draft[: len(tokens)]
        if not agreed:
            last = len(tokens) - 1
            self.told[len(self.answer) + last :] = [float(self.rows[last][0][tokens[last]])]
        self.answer += tokens
        if agreed:
            del self.draft[: len(tokens)]
            for _ in tokens:
                self.rows.popleft()
        else:
            self.draft.clear()
            self.rows.clear()
        return agreed

    def forget_draft(self) -> None:
        """Leave nothing of the draft in the KV caches: what an answer leaves there must not depend on the window."""
        for one in (self._edge, self._without):
            if one is not None:
                one.keep(len(self.answer))

    def compute(self) -> None:
        """Feed the last token of the answer and its draft; the row behind it is then there."""
        started = time.perf_counter()
        token, position = (self.draft or self.answer)[-1], self.length - 1
        self.rows.append(
            (self._edge.step(token, position), self._without.step(token, position) if self._without else None)
        )
        self._measured.step(time.perf_counter() - started)
