"""Who holds a session of the server: at most so many, and when all are taken the longest idle one gives way."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.wire import Reason


@dataclass(eq=False, slots=True)
class Session:
    """One client's place.

    Attributes:
        id: for the log.
        end: ends the client's call, wherever it waits; called at most once.
        last_used: when it last finished work, on the table's clock.
        working: the engine is busy for it, so it can't be evicted.
        ended: why the server ended it; None while it goes on.
    """

    id: str
    end: Callable[[], None]
    last_used: float
    working: bool = False
    ended: RefusalError | None = None


@dataclass(eq=False, slots=True)
class SessionTable:
    """Places for `max_sessions` clients. For the event loop's thread alone.

    Attributes:
        max_sessions: how many may be open at once; each holds a KV cache.
        idle_seconds: how long a session must have been idle before it may be evicted for a new one.
        clock: seconds that never go back.
    """

    max_sessions: int
    idle_seconds: float
    clock: Callable[[], float] = time.monotonic
    _sessions: dict[str, Session] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._sessions)

    @contextmanager
    def admit(self, end: Callable[[], None]) -> Iterator[Session]:
        """Hold a place while the context lasts.

        Raises:
            RefusalError: all places are taken and none has been idle long enough.
        """
        if len(self._sessions) >= self.max_sessions:
            self._make_room()
        session = Session(secrets.token_hex(8), end, self.clock())
        self._sessions[session.id] = session
        try:
            yield session
        finally:
            self._sessions.pop(session.id, None)

    @contextmanager
    def work(self, session: Session) -> Iterator[None]:
        """Mark a session as working while the context lasts."""
        session.working = True
        try:
            yield
        finally:
            session.working = False
            session.last_used = self.clock()

    def end_all(self) -> None:
        """End every session, because the server stops."""
        for session in list(self._sessions.values()):
            self._end(session, RefusalError(Reason.STOPPING, "the server stops"))

    def _make_room(self) -> None:
        idle = [session for session in self._sessions.values() if not session.working]
        oldest = min(idle, key=lambda session: session.last_used, default=None)
        if oldest is None or self.clock() - oldest.last_used < self.idle_seconds:
            raise RefusalError(Reason.OVERLOADED, f"all {self.max_sessions} sessions are in use")
        self._end(oldest, RefusalError(Reason.EVICTED, "another client took the session, which was idle"))

    def _end(self, session: Session, cause: RefusalError) -> None:
        del self._sessions[session.id]
        session.ended = cause
        session.end()
