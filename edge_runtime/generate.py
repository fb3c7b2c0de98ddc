"""The generation loop: drafts from the edge, rows from the cloud, one choice a position."""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass
from itertools import islice

from edge_runtime.cloud_link import CloudLink
from edge_runtime.drafter import Drafter, PromptedDecoder
from edge_runtime.options import Options
from edge_runtime.pace import Measured, choose_pace
from edge_runtime.speculate import PositionRows, settle


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
) -> Generator[Token, None, None]:
    """Write an answer token by token until the caller stops, which it must do at `limit` tokens or a token of `ends`.

    The cloud is asked before the edge computes, so the two work at the same time, and the edge drafts ahead while
    replies are under way. The answer does not depend on the window (see `edge_runtime.speculate`).

    Args:
        edge: the edge model with the private context.
        without: the edge model without it, for delta steering.
        link: the conversation with the cloud; None writes with the edge alone.
        options: sampling, fusion and window.
        measured: what this answer's steps, round trips and drafts turn out to be.
        limit: tokens of the answer; nothing is drafted beyond.
        ends: tokens that end the answer; nothing is drafted behind them.

    Raises:
        CloudError: the cloud failed before its first row.
        ContextOverflowError: the context is full.
        LedgerError: the ledger can't be written; nothing was sent.
    """
    pace = choose_pace(options.window, measured)
    drafter = Drafter(edge, without, options.sampling, measured)

    def drafts_on() -> bool:
        over = drafter.length >= limit or (drafter.draft and drafter.draft[-1] in ends)
        return not over and pace.drafts(len(drafter.draft))

    def add(token: int) -> None:
        """Show the link a token: the row behind it can travel while the edge computes its own."""
        if link and drafter.length < limit and token not in ends:
            link.push(token)
            send()

    def send() -> None:
        if link and pace.sends(link.unsent, *link.flights):
            link.send()

    if link:
        link.begin()
        link.send()
    drafter.prefill()
    while True:
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
            for token, row, guess in zip(settled, rows, (*draft, None), strict=False):
                fused = row.cloud is not None
                if fused and guess is not None:
                    measured.draft(token == guess)
                yield Token(token, fused)
            if not goes_on:
                if link:
                    link.rewind(len(drafter.answer) - 1)
                add(settled[-1])
            if link:
                link.settled(len(drafter.answer))
            if not goes_on:
                drafter.compute()
            else:
                send()
        elif drafts_on():
            token = drafter.guess()
            add(token)
            if drafter.length < limit and token not in ends:
                drafter.compute()
        elif link:
            link.wait()
