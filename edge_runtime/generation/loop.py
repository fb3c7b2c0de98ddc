"""The generation loops: the edge alone, and speculative fused decoding with the cloud."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from itertools import islice

from edge_runtime.generation.cloud_link import CloudLink
from edge_runtime.generation.drafter import Drafter, PromptedDecoder
from edge_runtime.generation.options import Options
from edge_runtime.generation.pace import Measured, Pace, choose_pace
from edge_runtime.generation.sampling import Sampling, choose
from edge_runtime.generation.speculate import PositionRows, Settled, settle


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer; `fused` says whether the cloud had a part in it."""

    id: int
    fused: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """Where an answer ends: with one of `tokens`, or when it has `limit` tokens."""

    limit: int
    tokens: Collection[int] = ()

    def reached(self, token: int, length: int) -> bool:
        """Whether an answer of `length` tokens, of which `token` is the last, is at its end."""
        return length == self.limit or token in self.tokens


def generate_alone(
    edge: PromptedDecoder, sampling: Sampling, ending: Ending, cancelled: Callable[[], bool] = lambda: False
) -> Generator[Token, None, None]:
    """Write an answer with the edge model alone, token by token, its last token included.

    Args:
        edge: the edge model.
        sampling: how a token is chosen.
        ending: where the answer ends.
        cancelled: looked at before each token.

    Raises:
        ContextOverflowError: the context is full.
    """
    answer: list[int] = []
    row = edge.prefill()
    while not cancelled():
        token = choose(row, len(answer), sampling, answer)
        answer.append(token)
        yield Token(token, fused=False)
        if ending.reached(token, len(answer)):
            return
        row = edge.step(token, len(answer) - 1)


def generate_fused(
    edge: PromptedDecoder,
    without: PromptedDecoder | None,
    link: CloudLink,
    options: Options,
    measured: Measured,
    ending: Ending,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Token, None, None]:
    """Write an answer with both models by speculative fused decoding, its last token included.

    The cloud is asked before the edge computes, so the two work at the same time, and the edge drafts ahead while
    replies are under way. The answer does not depend on the window (see `edge_runtime.generation.speculate`).

    Args:
        edge: the edge model with the private context.
        without: the edge model without it, where fusion needs it.
        link: the conversation with the cloud.
        options: sampling, fusion and window.
        measured: what this answer's steps, round trips and drafts turn out to be.
        ending: where the answer ends; nothing is drafted behind it, and its last token is never sent.
        cancelled: looked at before each round.

    Raises:
        CloudError: the cloud failed before its first row.
        ContextOverflowError: the context is full.
        LedgerError: the ledger can't be written; nothing was sent.
    """
    drafter = Drafter(edge, without, options.sampling, measured)
    speculation = _Speculation(drafter, link, choose_pace(options.window, measured), ending)
    link.begin()
    link.send()
    try:
        drafter.prefill()
        while not cancelled():
            if rows := speculation.verified():
                draft = tuple(drafter.draft)
                settled = settle(draft, rows, drafter.answer, options.fusion, options.sampling)
                ended = speculation.settle(settled)
                for offset, (token, row) in enumerate(zip(settled.tokens, rows, strict=False)):
                    if row.cloud is not None and offset < len(draft):
                        measured.draft(offset < settled.accepted)
                    yield Token(token, fused=row.cloud is not None)
                if ended:
                    return
                if not settled.keeps_draft:
                    speculation.step()
            elif speculation.may_draft:
                speculation.draft()
            else:
                speculation.wait()
    finally:
        drafter.rewind()


@dataclass(frozen=True, slots=True)
class _Speculation:
    """What both sides of an answer know of it: the edge's draft, and the rows that the cloud was asked for."""

    drafter: Drafter
    link: CloudLink
    pace: Pace
    ending: Ending

    @property
    def may_draft(self) -> bool:
        """Whether the pace allows one more drafted token, and the draft does not end the answer."""
        drafter = self.drafter
        ended = drafter.draft and self.ending.reached(drafter.last, drafter.length)
        return not ended and self.pace.drafts(len(drafter.draft))

    def draft(self) -> None:
        """Write one token ahead; the row behind it can travel while the edge computes its own."""
        token = self.drafter.propose()
        ended = self.ending.reached(token, self.drafter.length)
        if not ended:
            self.link.push(token)
        self._verify()
        if not ended:
            self.step()

    def step(self) -> None:
        """Compute the row behind the last token; where the schedule is learned, it tells whether the cloud is asked."""
        self.drafter.step()
        self.link.decide(self.drafter.rows[-1].own, self.drafter.log_probs)

    def verified(self) -> list[PositionRows]:
        """Both models' rows of the positions from the first unsettled one on, as far as they are there."""
        self.link.poll()
        ready = min(self.link.ready, len(self.drafter.rows))
        return [
            PositionRows(row.own, self.link.row(ahead), row.without)
            for ahead, row in enumerate(islice(self.drafter.rows, ready))
        ]

    def settle(self, settled: Settled) -> bool:
        """Move settled tokens to the answer, and rewind what was drafted behind them where it does not stand.

        What the cloud waits for is sent here, before the caller sees the tokens and takes its time with them.

        Returns:
            Whether the answer is at its end.
        """
        self.drafter.settle(settled)
        length = len(self.drafter.answer)
        if self.ending.reached(settled.tokens[-1], length):
            return True
        if not settled.keeps_draft:
            self.link.rewind(length - 1)
            self.link.push(settled.tokens[-1])
        self.link.settled(length)
        self._verify()
        return False

    def wait(self) -> None:
        """Send what is left, and wait for the cloud."""
        self._verify(drafting=False)
        self.link.wait()

    def _verify(self, *, drafting: bool = True) -> None:
        """Send the draft to the cloud, if it is time to; `drafting`: more of it follows before a reply comes."""
        if self.pace.sends(self.link.unsent, *self.link.flights, drafting=drafting):
            self.link.send()
