"""One generation's conversation with the cloud: which rows were asked for, which came, and what became of the link."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.cloud import Cloud, CloudSession, Verified
from edge_runtime.errors import CloudError, CloudTimeoutError, ProtocolError
from edge_runtime.fusion.sparse import SparseLogProbs
from edge_runtime.generation.backoff import Backoff
from edge_runtime.generation.pace import Measured
from edge_runtime.generation.schedule import Decision, LearnedSchedule, Schedule
from edge_runtime.privacy.gate import Conversation, Released
from edge_runtime.privacy.messages import OpenRequest


class _State(Enum):
    UNDECIDED = auto()  # the edge's own row will tell whether it is wanted
    UNSENT = auto()  # the row is wanted
    SENT = auto()  # and was asked for
    HERE = auto()  # and came
    ALONE = auto()  # the edge decides alone


@dataclass(slots=True)
class _Position:
    """A position of the answer that is not settled: which row of the view predicts it, and whether that is here."""

    row: int
    state: _State
    cloud: SparseLogProbs | None = None


@dataclass(slots=True)
class _Flight:
    """A request under way; its positions may be settled or taken back before it lands."""

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
    """What the conversation cost.

    Attributes:
        round_trips: replies of the cloud.
        interruptions: how often the cloud fell away or was too slow.
        resumed: how often it came back.
        wait_seconds: that the device had nothing to do but wait for the cloud.
        server_seconds: that the cloud's model took for all requests.
    """

    round_trips: int = 0
    interruptions: int = 0
    resumed: int = 0
    wait_seconds: float = 0.0
    server_seconds: float = 0.0


@dataclass(slots=True)
class CloudLink:
    """Asks the cloud for rows; where it is gone or slow, the edge decides alone until it is back.

    Until the first row has arrived a failure is raised, since nothing was promised yet; only a cloud that says when to
    come back is asked again, for at most `patience` seconds. (A cloud that is silent that long has not failed: the edge
    begins alone.) After that a failure means that positions are decided by the edge alone while the link is opened
    again, with growing pauses, and the cloud's session resumed. A failure that trying again can't mend ends the link.

    For one thread. Positions are those of the answer; `push`, `decide`, `rewind` and `settled` keep it in step with the
    drafts.

    Attributes:
        cloud: the connection.
        open_request: releases the message that opens a session, or resumes the one with the given id.
        conversation: what the cloud may see of the answer.
        schedule: at which positions the cloud is asked.
        vocab_size: of the edge model.
        patience: seconds that a position waits for its row.
        measured: what round trips turn out to take.
        backoff: pauses between attempts to reconnect.
        clock: seconds that never go back.
        cancelled: ends waiting, from any thread, as soon as it has a result.
        error: why the cloud can't be asked now; None while it can.
        counts: what it cost so far.
    """

    cloud: Cloud
    open_request: Callable[[str], Released[OpenRequest]]
    conversation: Conversation
    schedule: Schedule | LearnedSchedule
    vocab_size: int
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
        """Open the session and ask for the first position.

        Raises:
            CloudError: the connection was closed.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        self._give_up_at = self.clock() + self.patience
        self._open()
        self._reach()

    @property
    def unsent(self) -> int:
        """Positions whose rows are wanted and were not asked for."""
        return sum(position.state is _State.UNSENT for position in self._positions)

    @property
    def flights(self) -> tuple[int, int]:
        """Messages under way: those whose rows are wanted, and the others."""
        wanted = sum(flight.wanted for flight in self._flights)
        return wanted, len(self._flights) - wanted

    @property
    def ready(self) -> int:
        """How many positions from the first unsettled one on have their row, or are the edge's alone."""
        count = 0
        for position in self._positions:
            if position.state not in (_State.HERE, _State.ALONE):
                break
            count += 1
        return count

    def row(self, ahead: int) -> SparseLogProbs | None:
        """The cloud's row of the unsettled position `ahead` behind the first; None where the edge decides alone."""
        return self._positions[ahead].cloud

    def push(self, token: int) -> None:
        """A token was added to the answer or its draft."""
        self.conversation.push(token)
        self._reach()

    def decide(self, edge: NDArray[np.float32], recent: Sequence[float]) -> None:
        """The edge's (V,) float32 log-probs behind all tokens are there: a learned schedule looks at them.

        It decides also where the cloud can't be asked: what it decides later hangs on the text alone.

        Args:
            edge: the log-probs.
            recent: what its rows gave the last tokens, the latest last.
        """
        if not isinstance(self.schedule, LearnedSchedule):
            return
        step, last = self.conversation.length, self._positions[-1]
        del self._decisions[step - 1 :]  # of a draft that was taken back
        self._decisions.append(self.schedule.decide(step, edge, recent, self._decisions))
        if last.state is _State.UNDECIDED:
            last.state = _State.UNSENT if self._decisions[-1].asks else _State.ALONE

    def rewind(self, length: int) -> None:
        """The draft was taken back: the answer and its draft have `length` tokens now."""
        self.conversation.rewind(length)
        while len(self._positions) > length - self._settled + 1:
            self._positions.pop().state = _State.ALONE

    def settled(self, length: int) -> None:
        """The first `length` tokens are the answer's for good."""
        while self._settled < length and self._positions:
            self._positions.popleft()
            self._settled += 1

    def send(self) -> None:
        """Ask for all rows that are wanted and were not asked for.

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
                    position.state = _State.ALONE  # the cloud's context is full; the rows that fit are asked for
                else:
                    unsent.append(position)
        if not unsent:
            return
        # A view may leave a token out, and then one row serves two positions.
        if self._ask(tuple(sorted({position.row for position in unsent})), unsent):
            for position in unsent:
                position.state = _State.SENT

    def poll(self) -> None:
        """Take in what has arrived, and reconnect where it is time to.

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
                continue  # sent, or the edge's alone now
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
        """The next position is the one behind all tokens; the cloud is asked if link, schedule and policy allow it."""
        position = self.conversation.length
        up = self._session is not None and not self._waits_for_sign
        asks = self.schedule.asks(position) if up and self.conversation.asks else False
        state = _State.UNDECIDED if asks is None else _State.UNSENT if asks else _State.ALONE
        self._positions.append(_Position(self.conversation.row, state))

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
            if not verified.superseded:
                self._check(verified, flight)
            elif flight.wanted:
                raise ProtocolError("The cloud left out rows that are still wanted. Update the cloud.")
        except CloudError as error:
            self._lost(error)
            return
        self._promised = True
        self.counts.round_trips += 1
        self.counts.server_seconds += verified.compute_seconds
        if self._proven:  # the first reply of a session reads the prompt, too
            self.measured.trip(
                (flight.landed or self.clock()) - flight.sent - verified.queue_seconds, verified.compute_seconds
            )
        self._proven = True
        if self._waits_for_sign:
            self._waits_for_sign = False
            self.counts.resumed += 1
        self.error, self._retry_at = None, None
        self.backoff.reset()
        rows = dict(zip(flight.rows, verified.rows, strict=False))
        for position in flight.positions:
            if position.state is _State.SENT:
                position.cloud, position.state = rows[position.row], _State.HERE

    def _check(self, verified: Verified, flight: _Flight) -> None:
        fits = all(int(row.ids[-1]) < self.vocab_size for row in verified.rows)
        if not fits or len(verified.rows) != len(flight.rows):
            raise ProtocolError("The cloud sent rows that don't fit this model. Check which model it serves.")

    def _lost(self, error: CloudError) -> None:
        """The session failed: decide alone what it was asked, and try again later where that may help."""
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
        if self.cancelled.done():  # nothing leaves any more
            self._decide_alone()
            return
        self._open()
        for position in self._positions:
            if position.state is _State.SENT:
                position.state = _State.UNSENT
        self.send()

    def _reconnect(self) -> None:
        """Resume the session; the row behind the answer warms its cache and is the sign that the cloud is back."""
        self._retry_at = None
        try:
            self._open()
        except CloudError as error:
            self._lost(error)
            return
        self._ask((self.conversation.row,), [])

    def _stall(self) -> None:
        """The cloud is slow: the edge goes on alone until a reply comes."""
        if self.error is None:
            self.counts.interruptions += 1
            self.error = CloudTimeoutError(
                f"The cloud did not answer within {self.patience:g} seconds. The device goes on without it."
            )
        self._promised = self._waits_for_sign = True
        self._decide_alone()

    def _abandon(self) -> None:
        """No sign of the cloud: the connection is dead, whatever the network says (half-open TCP). Take another one."""
        assert self._session is not None
        self._session.abandon()
        self._lost(
            CloudTimeoutError(f"The cloud did not answer within {2 * self.patience:g} seconds. It is called again.")
        )

    def _decide_alone(self) -> None:
        for position in self._positions:
            if position.state is not _State.HERE:
                position.state = _State.ALONE


def _common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs)
