"""The generation loop: rows from the edge, rows from the cloud, one choice a position."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.cloud_link import CloudLink
from edge_runtime.decoder import Decoder
from edge_runtime.fusion import fuse
from edge_runtime.logprobs import log_softmax
from edge_runtime.options import Options
from edge_runtime.sampling import choose


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer; `fused` says whether the cloud had a part in it."""

    id: int
    fused: bool


@dataclass(frozen=True, slots=True)
class PromptedDecoder:
    """A decoder and the prompt it continues."""

    decoder: Decoder
    prompt: tuple[int, ...]

    def prefill(self) -> NDArray[np.float32]:
        """Feed the prompt and return the log-probs after it: (V,) float32.

        What it shares with the tokens already in the KV cache is not fed again.
        """
        shared = 0
        for mine, theirs in zip(self.prompt[:-1], self.decoder.token_ids, strict=False):
            if mine != theirs:
                break
            shared += 1
        self.decoder.rewind(shared)
        return log_softmax(self.decoder.extend(self.prompt[shared:])[0])

    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token and return the log-probs after it: (V,) float32."""
        return log_softmax(self.decoder.extend([token])[0])


def generate(
    edge: PromptedDecoder, without: PromptedDecoder | None, link: CloudLink | None, options: Options
) -> Generator[Token, None, None]:
    """Write an answer token by token, for ever; the caller stops.

    Each position asks the cloud (where there is a link and the schedule says so) before the edge computes its own row,
    so the two work at the same time; a token is sent only once the caller asked for the next.

    Args:
        edge: the edge model with the private context.
        without: the edge model without it, for delta steering.
        link: the conversation with the cloud; None writes with the edge alone.
        options: sampling, fusion and schedule.

    Raises:
        CloudError: the cloud failed before its first row.
        ContextOverflowError: the context is full.
    """
    answer: list[int] = []
    pending = link.ask(answer) if link and options.schedule.asks(0) else None
    row = edge.prefill()
    row_without = without.prefill() if without else None
    while True:
        cloud = link.row(pending) if link else None
        fused = row if cloud is None else fuse(row, cloud, options.fusion, row_without)
        token = choose(fused, len(answer), options.sampling, answer)
        yield Token(token, fused=cloud is not None)
        answer.append(token)
        pending = link.ask(answer) if link and options.schedule.asks(len(answer)) else None
        row = edge.step(token)
        row_without = without.step(token) if without else None
