"""Defines a client's session on the server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.quotas import Caller

End = Callable[[RefusalError], None]
"""Ends a session's stream at any point; called at most once."""


@dataclass(eq=False, slots=True)
class Session:
    """One client's session.

    Attributes:
        id: a secret: anyone who knows it can resume the session.
        caller: the client.
        method: `Score`, `Sketch` or `Answer`.
        begun: start time on the table's clock.
        last_used: time of the last request or reply.
        end: ends the session's stream; None while it is parked.
        topic: digest of the instruction.
        state: the engine's state; None until it is made, and for methods that need none.
        cache_bytes: size of the KV cache.
        cache_drops: how often the KV cache was evicted.
        working: whether requests are pending, so that the session can't be evicted.
        requests: number of answered requests.
        rows: number of sent rows.
    """

    id: str
    caller: Caller
    method: str
    begun: float
    last_used: float
    end: End | None
    topic: bytes = b""
    state: Any = None
    cache_bytes: int = 0
    cache_drops: int = 0
    working: bool = False
    requests: int = 0
    rows: int = 0

    @property
    def tag(self) -> str:
        """The session's name in the log, which does not reveal the id."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:8]
