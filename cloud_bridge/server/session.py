"""One session of a device: its sequence, its limits and its end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.quotas import Caller

End = Callable[[RefusalError], None]
"""Ends a session's stream, wherever it waits; called at most once."""


@dataclass(eq=False, slots=True)
class Session:
    """One client's place.

    Attributes:
        id: a secret: who knows it can resume the session.
        caller: who opened it.
        method: `Score`, `Sketch` or `Answer`.
        begun: when, on the table's clock.
        last_used: when it was last asked or answered.
        end: ends its stream; None while it is parked.
        topic: digest of the instruction.
        state: the engine's; None until it is made, and for methods that need none.
        cache_bytes: of its KV cache.
        cache_drops: how often the cache made room for others.
        working: requests are under way, so it can't be evicted.
        requests: answered so far.
        rows: sent so far.
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
        """Names it in the log; tells nobody the id."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:8]
