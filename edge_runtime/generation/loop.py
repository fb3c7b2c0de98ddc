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
    """One token of the answer; `fused` says whether a row of the cloud took part in the choice."""

    id: int
    fused: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of an answer: one of `tokens`, or a length of `limit` tokens."""

    limit: int
    tokens: Collection[int] = ()

    def reached(self, token: int, length: int) -> bool:
        """Return whether an answer of `length` tokens that ends with `token` is complete."""
        return length == self.limit or token in self.tokens


def generate_alone(
    edge: PromptedDecoder, sampling: Sampling, ending: Ending, cancelled: Callable[[], bool] = lambda: False
) -> Generator[Token, None, None]:
    """Write an answer with the edge model alone, token by token, including the stop token.

    Args:
        edge: the edge model.
        sampling: how a token is chosen.
        ending: where the answer ends.
        cancelled: checked before each token.

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
    """Write an answer with both models by speculative fused decoding, including the stop token.

    The cloud is asked before the edge computes, so both work at the same time. The edge drafts ahead while requests are
    in flight. The answer does not depend on the window (see `edge_runtime.generation.speculate`).

    Args:
        edge: the edge model with the private context.
        without: the edge model without it, if fusion needs it.
        link: the exchange with the cloud.
        options: sampling, fusion and window.
        measured: receives the measurements of steps, round trips and drafts.
        ending: where the answer ends; nothing is drafted after it, and the last token is never sent.
        cancelled: checked before each round.

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
    """Keeps the edge's draft and the rows requested from the cloud in step."""

    drafter: Drafter
    link: CloudLink
    pace: Pace
    ending: Ending

    @property
    def may_draft(self) -> bool:
        """Whether the pace allows one more drafted token and the draft has not ended the answer."""
        drafter = self.drafter
        ended = drafter.draft and self.ending.reached(drafter.last, drafter.length)
        return not ended and self.pace.drafts(len(drafter.draft))

    def draft(self) -> None:
        """Draft one token; the cloud can score it while the edge computes its own row."""
        token = self.drafter.propose()
        ended = self.ending.reached(token, self.drafter.length)
        if not ended:
            self.link.push(token)
        self._verify()
        if not ended:
            self.step()

    def step(self) -> None:
        """Compute the row after the last token; a learned schedule decides from it whether to ask the cloud."""
        self.drafter.step()
        self.link.decide(self.drafter.rows[-1].own, self.drafter.log_probs)

    def verified(self) -> list[PositionRows]:
        """Return both models' rows for the leading unsettled positions that have them."""
        self.link.poll()
        ready = min(self.link.ready, len(self.drafter.rows))
        return [
            PositionRows(row.own, self.link.row(ahead), row.without)
            for ahead, row in enumerate(islice(self.drafter.rows, ready))
        ]

    def settle(self, settled: Settled) -> bool:
        """Move settled tokens to the answer, and withdraw the rest of the draft if it was rejected.

        Pending requests are sent here, before the caller gets the tokens, because the caller may be slow.

        Returns:
            Whether the answer is complete.
        """
        self.drafter.settle(settled)
        length = len(self.drafter.answer)
        if self.ending.reached(settled.tokens[-1], length):
            self.link.settled(length)
            return True
        if not settled.keeps_draft:
            self.link.rewind(length - 1)
            self.link.push(settled.tokens[-1])
        self.link.settled(length)
        self._verify()
        return False

    def wait(self) -> None:
        """Send the remaining requests and wait for the cloud."""
        self._verify(drafting=False)
        self.link.wait()

    def _verify(self, *, drafting: bool = True) -> None:
        """Send the draft to the cloud if it is due; `drafting`: whether more will follow before a reply arrives."""
        if self.pace.sends(self.link.unsent, *self.link.flights, drafting=drafting):
            self.link.send()
