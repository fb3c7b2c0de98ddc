"""The generation loop: drafts from the edge, rows from the cloud, one choice a position."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from itertools import islice

from edge_runtime.generation.cloud_link import CloudLink
from edge_runtime.generation.drafter import Drafter, PromptedDecoder
from edge_runtime.generation.options import Options
from edge_runtime.generation.pace import Measured, choose_pace
from edge_runtime.generation.speculate import PositionRows, settle


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the answer; `fused` says whether the cloud had a part in it."""

    id: int
    fused: bool


def generate(
    edge: PromptedDecoder,
    without: PromptedDecoder | None,
    link: CloudLink | None,
    options: Options,
    measured: Measured,
    *,
    limit: int,
    ends: Collection[int] = (),
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Token, None, None]:
    """Write an answer token by token, up to `limit` tokens or the first of `ends`, which is given as well.

    The cloud is asked before the edge computes, so the two work at the same time, and the edge drafts ahead while
    replies are under way. The answer does not depend on the window (see `edge_runtime.generation.speculate`).

    Args:
        edge: the edge model with the private context.
        without: the edge model without it, where fusion needs it.
        link: the conversation with the cloud; None writes with the edge alone.
        options: sampling, fusion and window.
        measured: what this answer's steps, round trips and drafts turn out to be.
        limit: of the answer's tokens; nothing is drafted beyond.
        ends: tokens that end the answer; they never leave, and nothing is drafted behind them.
        cancelled: looked at before each token.

    Raises:
        CloudError: the cloud failed before its first row.
        ContextOverflowError: the context is full.
        LedgerError: the ledger can't be written; nothing was sent.
    """
    pace = choose_pace(options.window, measured)
    drafter = Drafter(edge, without, options.sampling, measured)

    def last(token: int, position: int) -> bool:
        return token in ends or position == limit - 1

    def drafts_on() -> bool:
        ended = drafter.draft and last(drafter.draft[-1], drafter.length - 1)
        return not ended and pace.drafts(len(drafter.draft))

    def show(token: int) -> None:
        """Let the link know of a token: the row behind it can travel while the edge computes its own."""
        if link and not last(token, drafter.length - 1):
            link.push(token)

    def compute() -> None:
        """Feed the last token; where the schedule is learned, the row behind it tells whether the cloud is asked."""
        drafter.compute()
        if link:
            link.decide(drafter.rows[-1][0], drafter.told)

    def send(drafting: bool = True) -> None:
        if link and pace.sends(link.unsent, *link.flights, drafting=drafting):
            link.send()

    if link:
        link.begin()
        link.send()
    try:
        drafter.prefill()
        while True:
            if cancelled():
                return
            if link:
                link.poll()
            ready = min(link.ready, len(drafter.rows)) if link else len(drafter.rows)
            if ready:
                rows = [
                    PositionRows(own, link.row(ahead) if link else None, own_without)
                    for ahead, (own, own_without) in enumerate(islice(drafter.rows, ready))
                ]
                draft = tuple(drafter.draft)
                settled = settle(draft, rows, drafter.answer, options.fusion, options.sampling)
                goes_on = drafter.settle(settled)
                ended = last(settled[-1], len(drafter.answer) - 1)
                # What the cloud waits for leaves before the caller sees the tokens, and takes its time with them.
                if link and not ended:
                    if not goes_on:
                        link.rewind(len(drafter.answer) - 1)
                        show(settled[-1])
                    link.settled(len(drafter.answer))
                    send()
                for token, row, guess in zip(settled, rows, (*draft, None), strict=False):
                    fused = row.cloud is not None
                    if fused and guess is not None:
                        measured.draft(token == guess)
                    yield Token(token, fused)
                if ended:
                    return
                if not goes_on:
                    compute()
            elif drafts_on():
                token = drafter.guess()
                show(token)
                send()
                if not last(token, drafter.length - 1):
                    compute()
            elif link:
                send(drafting=False)
                link.wait()
    finally:
        drafter.forget_draft()
