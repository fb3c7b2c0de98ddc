"""Who holds a session of the server: places, what is parked for a device to come back, and who gives way to whom."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.quotas import Caller
from cloud_bridge.server.session import End, Session
from cloud_bridge.server.telemetry import Telemetry
from cloud_bridge.wire import Reason

_SHORTEST_RETRY, _LONGEST_RETRY = 0.2, 30.0
"""Seconds after which a refused client may be asked to come back."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """See `cloud_bridge.server.options.ServerOptions`; bytes instead of megabytes."""

    max_sessions: int = 64
    idle_seconds: float = 30.0
    session_timeout: float = 300.0
    resume_seconds: float = 30.0
    max_wait_seconds: float = 5.0
    max_cache_bytes: int = 0
    sessions_per_key: int = 0


@dataclass(eq=False)
class SessionTable:
    """All sessions. For the event loop's thread alone, but for the counts.

    Attributes:
        limits: how many, how long, how much.
        telemetry: is told of what happens.
        release: frees what the engine holds for a session that is gone.
        drop_cache: frees a session's KV cache; the session goes on.
        expected_wait: seconds that a request which came now would wait.
        clock: seconds that never go back.
    """

    limits: SessionLimits
    telemetry: Telemetry = field(default_factory=Telemetry)
    release: Callable[[Session], None] = lambda _: None
    drop_cache: Callable[[Session], None] = lambda _: None
    expected_wait: Callable[[], float] = lambda: 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._active: dict[str, Session] = {}
        self._parked: dict[str, Session] = {}  # the longest parked first
        self._cache_bytes = 0
        self._stopping: float | None = None  # after how many seconds a newcomer may ask again
        self._mean_seconds = 0.0  # that sessions live
        self._next_place = 0.0  # when the place frees that nobody was told of yet

    def __len__(self) -> int:
        return len(self._active) + len(self._parked)

    @property
    def active(self) -> int:
        """Sessions with a stream."""
        return len(self._active)

    @property
    def parked(self) -> int:
        """Sessions whose stream broke."""
        return len(self._parked)

    @property
    def cache_bytes(self) -> int:
        """Memory of all KV caches."""
        return self._cache_bytes

    # --- a session's life ---------------------------------------------------------------------------------------------

    def open(self, caller: Caller, method: str, end: End, *, topic: bytes = b"") -> Session:
        """Give a newcomer a place.

        Raises:
            RefusalError: the server stops, the caller has all it may have, or there is no place, time or memory.
        """
        self._admit(caller)
        self._check_load()
        if len(self) >= self.limits.max_sessions:
            self._make_room()
        now = self.clock()
        session = Session(secrets.token_hex(16), caller, method, now, now, end, topic)
        self._active[session.id] = session
        return session

    def resume(self, session_id: str, caller: Caller, end: End, *, topic: bytes) -> Session | None:
        """Go on with a session whose stream broke, even where the server has not noticed yet: the new stream wins.

        Returns:
            The session; None where there is none of this id, caller and instruction.

        Raises:
            RefusalError: the server stops, or the caller has all sessions it may have.
        """
        session = self._parked.get(session_id) or self._active.get(session_id)
        if session is None or session.caller.name != caller.name or session.topic != topic or session.state is None:
            return None
        if session.end is None:
            self._admit(caller)
            del self._parked[session_id]
            self._active[session_id] = session
        else:
            session.end(RefusalError(Reason.EVICTED, "another stream resumed the session"))
        session.end = end
        session.caller = caller
        session.working = False
        session.last_used = self.clock()
        self.telemetry.resumed(session)
        return session

    def park(self, session: Session) -> None:
        """Keep a session whose stream broke for a while."""
        if self.limits.resume_seconds <= 0 or session.state is None or self._stopping is not None:
            self.close(session, "broken")
            return
        session.end = None
        session.working = False
        session.last_used = self.clock()
        self._parked[session.id] = self._active.pop(session.id)
        self.telemetry.parked(session)

    def close(self, session: Session, cause: str) -> None:
        """Free a session.

        Args:
            session: that ends; nothing happens where it has ended already.
            cause: for metrics and log.
        """
        if self._active.pop(session.id, None) is None and self._parked.pop(session.id, None) is None:
            return
        seconds = self.clock() - session.begun
        self._mean_seconds += (seconds - self._mean_seconds) * (0.1 if self._mean_seconds else 1.0)
        self._count_cache(session, 0)
        self.telemetry.closed(session, cause, seconds)
        self.release(session)

    def holds(self, session: Session, end: End) -> bool:
        """Whether the stream that `end` ends still has the session."""
        return self._active.get(session.id) is session and session.end == end

    def touch(self, session: Session, *, working: bool) -> None:
        """Note that a session was asked or answered."""
        session.working = working
        session.last_used = self.clock()

    # --- what ends sessions -------------------------------------------------------------------------------------------

    def stop_admitting(self, retry_after: float) -> None:
        """Refuse newcomers, because the server stops; what is parked is freed."""
        self._stopping = retry_after
        for session in list(self._parked.values()):
            self.close(session, "stopping")

    def in_use(self, seconds: float) -> bool:
        """Whether any session was asked or answered in the last `seconds`."""
        now = self.clock()
        return any(session.working or now - session.last_used < seconds for session in self._active.values())

    def end_all(self) -> None:
        """End every session, because the server stops."""
        for session in list(self._active.values()):
            self._end(session, RefusalError(Reason.STOPPING, "the server stops"), "stopping")
        for session in list(self._parked.values()):
            self.close(session, "stopping")

    def sweep(self) -> None:
        """End what has been left alone for too long."""
        now = self.clock()
        for session in list(self._parked.values()):
            if now - session.last_used >= self.limits.resume_seconds:
                self.close(session, "expired")
        for session in list(self._active.values()):
            if not session.working and now - session.last_used >= self.limits.session_timeout:
                seconds = self.limits.session_timeout
                self._end(session, RefusalError(Reason.EVICTED, f"nothing was asked for {seconds:g} seconds"), "idle")

    # --- memory -------------------------------------------------------------------------------------------------------

    def cache_grew(self, session: Session, cache_bytes: int) -> None:
        """Note what a session's cache takes now; where all take too much, others give theirs.

        Parked sessions go first, entirely; then the caches of idle ones, the longest idle first; then of those in use,
        the last that asked first, so that the others get done. They go on, and compute what they need again.
        """
        if session.id not in self._active:
            return
        self._count_cache(session, cache_bytes)
        for other in self._who_gives_memory(session):
            if not self._memory_full():
                return
            if other.end is None:
                self.close(other, "memory")
                continue
            self.telemetry.cache_dropped(other)
            other.cache_drops += 1
            self._count_cache(other, 0)
            self.drop_cache(other)

    def _who_gives_memory(self, busy: Session) -> Iterator[Session]:
        yield from list(self._parked.values())
        caches = [session for session in self._active.values() if session.cache_bytes]
        idle = [session for session in caches if not session.working and session is not busy]
        yield from sorted(idle, key=lambda session: session.last_used)
        used = [session for session in caches if session.working or session is busy]
        yield from sorted(used, key=lambda session: -session.last_used)[: len(used) - 1]  # one alone may have it all

    def _count_cache(self, session: Session, cache_bytes: int) -> None:
        self._cache_bytes += cache_bytes - session.cache_bytes
        session.cache_bytes = cache_bytes

    def _memory_full(self) -> bool:
        return 0 < self.limits.max_cache_bytes < self._cache_bytes

    # --- admission ----------------------------------------------------------------------------------------------------

    def _admit(self, caller: Caller) -> None:
        if self._stopping is not None:
            raise RefusalError(Reason.STOPPING, "the server is being stopped", retry_after=self._stopping)
        most = self.limits.sessions_per_key
        if most and self._accounts()[caller.account] >= most:
            raise RefusalError(Reason.QUOTA, f"{most} sessions at once are allowed", retry_after=self._place_frees())

    def _accounts(self) -> Counter[str]:
        return Counter(session.caller.account for session in self._active.values())

    def _check_load(self) -> None:
        wait = self.expected_wait()
        if wait > self.limits.max_wait_seconds:
            raise RefusalError(Reason.OVERLOADED, f"requests wait {wait:.1f} seconds", retry_after=wait)
        most = self.limits.max_cache_bytes
        if most and sum(session.cache_bytes for session in self._active.values() if session.working) >= most:
            raise RefusalError(Reason.OVERLOADED, "the memory for sessions is in use", retry_after=self._place_frees())

    def _make_room(self) -> None:
        for session in list(self._parked.values())[:1]:
            self.close(session, "evicted")
            return
        idle = [session for session in self._active.values() if not session.working]
        oldest = min(idle, key=lambda session: session.last_used, default=None)
        if oldest is None or self.clock() - oldest.last_used < self.limits.idle_seconds:
            raise RefusalError(
                Reason.OVERLOADED,
                f"all {self.limits.max_sessions} sessions are in use",
                retry_after=self._place_frees(),
            )
        self._end(oldest, RefusalError(Reason.EVICTED, "another client took the session, which was idle"), "evicted")

    def _place_frees(self) -> float:
        """Seconds until the next place is likely to be free that nobody else was told of."""
        now = self.clock()
        ages = [now - session.begun for session in self._active.values()]
        life = max(self._mean_seconds, sum(ages) / max(len(ages), 1))
        # One after the other: all of them at once would find one place free, and wait in vain.
        self._next_place = max(self._next_place, now) + life / self.limits.max_sessions
        self._next_place = min(self._next_place, now + _LONGEST_RETRY)
        return max(self._next_place - now, _SHORTEST_RETRY)

    def _end(self, session: Session, reason: RefusalError, cause: str) -> None:
        end = session.end
        self.close(session, cause)
        if end is not None:
            end(reason)
