"""Tracks one generation's exchange with the cloud: rows requested, rows received, and the state of the link."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.cloud import Cloud, CloudSession, Verified
from edge_runtime.errors import CloudError, CloudTimeoutError, ProtocolError
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.fusion.sparse import SparseLogProbs
from edge_runtime.generation.backoff import Backoff
from edge_runtime.generation.pace import Measured
from edge_runtime.generation.schedule import Decision, LearnedSchedule, Schedule
from edge_runtime.privacy.gate import Conversation, Released
from edge_runtime.privacy.messages import OpenRequest


class _State(Enum):
    UNDECIDED = auto()  # the edge's own row decides whether to request the cloud's
    UNSENT = auto()  # to be requested
    SENT = auto()  # requested
    HERE = auto()  # received
    ALONE = auto()  # the edge decides alone


class Alone(StrEnum):
    """Why the edge decided a token alone although the schedule asks the cloud there.

    CLOUD: the cloud was lost or too slow. CONTEXT: the answer fills the cloud's context. POLICY: the privacy policy
    shows the cloud no more of the answer.
    """

    CLOUD = "cloud"
    CONTEXT = "context"
    POLICY = "policy"


@dataclass(slots=True)
class _Position:
    """An unsettled position of the answer: the row of the view that predicts it, and the state of that row.

    `alone` says why the edge decides it, if the schedule asks the cloud there.
    """

    row: int
    state: _State
    cloud: SparseLogProbs | None = None
    alone: Alone | None = None


@dataclass(slots=True)
class _Flight:
    """A request in flight; its positions may be settled or withdrawn before the reply arrives."""

    future: Future[Verified]
    rows: tuple[int, ...]
    positions: list[_Position]
    sent: float
    landed: float = 0.0

    @property
    def wanted(self) -> bool:
        return any(position.state is _State.SENT for position in self.positions)


@dataclass(slots=True)
class LinkCounts:
    """Statistics of the exchange with the cloud.

    Attributes:
        round_trips: replies of the cloud.
        interruptions: how often the cloud was lost or too slow.
        resumed: how often it came back.
        wait_seconds: time that the device spent only waiting for the cloud.
        server_seconds: compute time of the cloud's model for all requests.
        alone: settled tokens that the edge decided although the schedule asks the cloud there, by reason.
    """

    round_trips: int = 0
    interruptions: int = 0
    resumed: int = 0
    wait_seconds: float = 0.0
    server_seconds: float = 0.0
    alone: Counter[Alone] = field(default_factory=Counter)


@dataclass(slots=True)
class CloudLink:
    """Requests rows from the cloud; while the cloud is gone or slow, the edge decides alone.

    A failure before the first row is raised, unless the cloud gave a retry delay: then the link retries for at most
    `patience` seconds. (A cloud that stays silent that long has not failed: the edge begins alone.) After the first
    row, a failure makes the edge decide alone. Meanwhile the link reconnects with exponential back-off and resumes the
    cloud's session. A permanent failure ends the link.

    Not thread-safe. Positions are those of the answer; `push`, `decide`, `rewind` and `settled` keep the link in step
    with the drafts.

    Attributes:
        cloud: the connection.
        open_request: releases the message that opens a session, or resumes the session with the given id.
        conversation: the part of the answer that the cloud may see.
        schedule: chooses the positions at which the cloud is asked.
        known: the edge model's ids that have a token; rows may have only these.
        patience: maximum seconds that a position waits for its row.
        measured: receives the measured times of round trips.
        backoff: pauses between attempts to reconnect.
        clock: monotonic clock, in seconds.
        cancelled: setting its result, from any thread, ends all waiting.
        error: why the cloud can't be asked now; None if it can.
        counts: statistics so far.
    """

    cloud: Cloud
    open_request: Callable[[str], Released[OpenRequest]]
    conversation: Conversation
    schedule: Schedule | LearnedSchedule
    known: KnownTokens
    patience: float
    measured: Measured
    backoff: Backoff = field(default_factory=Backoff)
    clock: Callable[[], float] = time.monotonic
    cancelled: Future[None] = field(default_factory=Future)
    error: CloudError | None = None
    counts: LinkCounts = field(default_factory=LinkCounts)
    _session: CloudSession | None = None
    _session_id: str = ""
    _known: tuple[int, ...] = ()
    _flights: deque[_Flight] = field(default_factory=deque)
    _positions: deque[_Position] = field(default_factory=deque)
    _decisions: list[Decision] = field(default_factory=list)
    _settled: int = 0
    _retry_at: float | None = None
    _waits_for_sign: bool = False
    _give_up_at: float = 0.0
    _promised: bool = False
    _proven: bool = False

    def begin(self) -> None:
        """Open the session and request the first position's row.

        Raises:
            CloudError: the connection was closed.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        self._give_up_at = self.clock() + self.patience
        self._open()
        self._reach()

    @property
    def unsent(self) -> int:
        """Number of positions whose rows are still to be requested."""
        return sum(position.state is _State.UNSENT for position in self._positions)

    @property
    def flights(self) -> tuple[int, int]:
        """Messages in flight: those whose rows are still needed, and the others."""
        wanted = sum(flight.wanted for flight in self._flights)
        return wanted, len(self._flights) - wanted

    @property
    def ready(self) -> int:
        """Number of leading unsettled positions that have their row or that the edge decides alone."""
        count = 0
        for position in self._positions:
            if position.state not in (_State.HERE, _State.ALONE):
                break
            count += 1
        return count

    def row(self, ahead: int) -> SparseLogProbs | None:
        """Return the cloud's row for the unsettled position at index `ahead`; None if the edge decides it alone."""
        return self._positions[ahead].cloud

    def push(self, token: int) -> None:
        """Record that a token was added to the answer or its draft."""
        self.conversation.push(token)
        self._reach()

    def decide(self, edge: NDArray[np.float32], recent: Sequence[float]) -> None:
        """Let a learned schedule decide whether the next position needs the cloud.

        It also decides when the cloud can't be asked, so that later decisions depend on the text alone.

        Args:
            edge: (V,) float32, the edge's log-probs after all tokens.
            recent: log-probs that the edge's rows gave the last tokens, oldest first.
        """
        if not isinstance(self.schedule, LearnedSchedule):
            return
        step, last = self.conversation.length, self._positions[-1]
        del self._decisions[step - 1 :]  # decisions about a withdrawn draft
        self._decisions.append(self.schedule.decide(step, edge, recent, self._decisions))
        if last.state is _State.UNDECIDED:
            last.state = _State.UNSENT if self._decisions[-1].asks else _State.ALONE

    def rewind(self, length: int) -> None:
        """Withdraw drafted tokens, so that the answer and its draft have `length` tokens."""
        self.conversation.rewind(length)
        while len(self._positions) > length - self._settled + 1:
            self._positions.pop().state = _State.ALONE

    def settled(self, length: int) -> None:
        """Record that the first `length` tokens of the answer are final."""
        while self._settled < length and self._positions:
            position = self._positions.popleft()
            if position.state is _State.ALONE and position.alone is not None:
                self.counts.alone[position.alone] += 1
            self._settled += 1

    def send(self) -> None:
        """Request all rows that are still to be requested.

        Raises:
            CloudError: before the first row.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        if self._session is None:
            return
        room = self._session.room
        unsent: list[_Position] = []
        for position in self._positions:
            if position.state is _State.UNSENT:
                if room is not None and position.row > room:
                    # Rows that fit are still requested.
                    position.state, position.alone = _State.ALONE, Alone.CONTEXT
                else:
                    unsent.append(position)
        if not unsent:
            return
        # A view may omit a token; then one row serves two positions.
        if self._ask(tuple(sorted({position.row for position in unsent})), unsent):
            for position in unsent:
                position.state = _State.SENT

    def poll(self) -> None:
        """Process replies that have arrived, and reconnect when a retry is due.

        Raises:
            CloudError: before the first row.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        while self._flights and self._flights[0].future.done():
            self._land(self._flights.popleft())
        if self._waits_for_sign and self._flights and self.clock() > self._flights[0].sent + 2 * self.patience:
            self._abandon()
        if self._retry_at is not None and self.clock() >= self._retry_at and self.conversation.asks:
            self._reconnect()

    def wait(self) -> None:
        """Wait for the first unsettled position's row, for at most `patience` seconds or until cancelled.

        Raises:
            CloudError: before the first row.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        first = self._positions[0]
        started = self.clock()
        while first.state in (_State.UNSENT, _State.SENT) and not self.cancelled.done():
            if first.state is _State.UNSENT:
                self.send()
                continue  # now sent, or left to the edge alone
            left = started + self.patience - self.clock()
            if left <= 0 or not self._flights:
                self._stall()
            else:
                waited: list[Future[Any]] = [self._flights[0].future, self.cancelled]
                wait(waited, timeout=left, return_when=FIRST_COMPLETED)
                self.poll()
        self.counts.wait_seconds += self.clock() - started

    def close(self) -> None:
        """Free the cloud's session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _reach(self) -> None:
        """Add the position after the last token; ask the cloud if link, schedule and policy allow it."""
        position = self.conversation.length
        up = self._session is not None and not self._waits_for_sign
        asks, alone = self.schedule.asks(position), None
        if asks is not False and not (up and self.conversation.asks):
            # A learned schedule might not have asked here, but the cloud could not be asked in any case.
            asks, alone = False, Alone.CLOUD if not up else Alone.POLICY
        state = _State.UNDECIDED if asks is None else _State.UNSENT if asks else _State.ALONE
        self._positions.append(_Position(self.conversation.row, state, alone=alone))

    def _open(self) -> None:
        self._session = self.cloud.open(self.open_request(self._session_id))
        self._known = ()
        self._proven = False

    def _ask(self, rows: tuple[int, ...], positions: list[_Position]) -> bool:
        assert self._session is not None
        view = self.conversation.released()[: rows[-1]]
        keep = _common_length(view, self._known)
        flight = _Flight(Future(), rows, positions, self.clock())
        try:
            flight.future = self._session.verify(self.conversation.verify(keep=keep, end=len(view), rows=rows))
        except CloudError as error:
            self._lost(error)
            return False
        self._known = view
        flight.future.add_done_callback(lambda _: setattr(flight, "landed", self.clock()))
        self._flights.append(flight)
        return True

    def _land(self, flight: _Flight) -> None:
        try:
            verified = flight.future.result()
            rows = {} if verified.superseded else self._checked(verified, flight)
            if verified.superseded and flight.wanted:
                raise ProtocolError("The cloud left out rows that are still wanted. Update the cloud.")
        except CloudError as error:
            self._lost(error)
            return
        self._promised = True
        self.counts.round_trips += 1
        self.counts.server_seconds += verified.compute_seconds
        if self._proven:  # a session's first reply includes the prefill of the prompt
            self.measured.trip(
                (flight.landed or self.clock()) - flight.sent - verified.queue_seconds, verified.compute_seconds
            )
        self._proven = True
        if self._waits_for_sign:
            self._waits_for_sign = False
            self.counts.resumed += 1
        self.error, self._retry_at = None, None
        self.backoff.reset()
        for position in flight.positions:
            if position.state is _State.SENT:
                position.cloud, position.state = rows[position.row], _State.HERE

    def _checked(self, verified: Verified, flight: _Flight) -> dict[int, SparseLogProbs]:
        """Return the reply's rows by their number, without ids that have no token here."""
        known = [row for row in map(self.known.only, verified.rows) if row is not None]
        if not len(known) == len(verified.rows) == len(flight.rows):
            raise ProtocolError("The cloud sent rows that don't fit this model. Check which model it serves.")
        return dict(zip(flight.rows, known, strict=True))

    def _lost(self, error: CloudError) -> None:
        """Handle a failed session: decide its positions alone, and schedule a retry if the error is transient."""
        if self._session is not None:
            self._session_id = self._session.id or self._session_id
        self.close()
        self._flights.clear()
        if not self._promised:
            self._begin_again(error)
            return
        if self.error is None:
            self.counts.interruptions += 1
        self.error = error
        self._decide_alone()
        self._waits_for_sign = True
        self._retry_at = None
        if error.transient:
            self._retry_at = self.clock() + self.backoff.next_seconds(error.retry_after)

    def _begin_again(self, error: CloudError) -> None:
        pause = error.retry_after
        if not error.transient or pause <= 0 or self.clock() + pause > self._give_up_at:
            raise error
        wait([self.cancelled], timeout=pause)
        if self.cancelled.done():  # send nothing more
            self._decide_alone()
            return
        self._open()
        for position in self._positions:
            if position.state is _State.SENT:
                position.state = _State.UNSENT
        self.send()

    def _reconnect(self) -> None:
        """Resume the session and request the next row: it warms the cloud's cache and shows that the cloud is back."""
        self._retry_at = None
        try:
            self._open()
        except CloudError as error:
            self._lost(error)
            return
        self._ask((self.conversation.row,), [])

    def _stall(self) -> None:
        """Handle a slow cloud: the edge goes on alone until a reply arrives."""
        if self.error is None:
            self.counts.interruptions += 1
            self.error = CloudTimeoutError(
                f"The cloud did not answer within {self.patience:g} seconds. The device goes on without it."
            )
        self._promised = self._waits_for_sign = True
        self._decide_alone()

    def _abandon(self) -> None:
        """Replace a connection without any reply: it may be dead although TCP reports it open (half-open)."""
        assert self._session is not None
        self._session.abandon()
        self._lost(
            CloudTimeoutError(f"The cloud did not answer within {2 * self.patience:g} seconds. It is called again.")
        )

    def _decide_alone(self) -> None:
        for position in self._positions:
            if position.state in (_State.UNSENT, _State.SENT, _State.UNDECIDED):
                position.state, position.alone = _State.ALONE, Alone.CLOUD


def _common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs)
