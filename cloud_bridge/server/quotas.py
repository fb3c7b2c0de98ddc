"""What one caller may use: tokens a minute, by a bucket that fills steadily."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.wire import Reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        name: of the API key; "" where the server has no keys.
        account: what quotas count by: the key, or the peer's address where there are no keys.
    """

    name: str
    account: str


@dataclass(eq=False, slots=True)
class TokenQuota:
    """A token bucket for each account (Turner 1986): it holds a minute's tokens at most, and fills in a minute.

    A request is paid when it is done, and may overdraw: nobody knows before what an answer will take.

    Attributes:
        per_minute: tokens; 0 sets no limit.
        clock: seconds that never go back.
    """

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def check(self, account: str) -> None:
        """Let an account pass that has not used up its tokens.

        Raises:
            RefusalError: it has.
        """
        if not self.per_minute:
            return
        balance = self._balance(account)
        if balance < 1:
            wait = (1 - balance) * 60 / self.per_minute
            raise RefusalError(Reason.QUOTA, f"{self.per_minute} tokens a minute are used up", retry_after=wait)

    def charge(self, account: str, tokens: int) -> None:
        """Take `tokens` off an account."""
        if self.per_minute and tokens:
            self._buckets[account] = (self._balance(account) - tokens, self.clock())

    def forget_full(self) -> None:
        """Forget accounts whose buckets are full again, so that the table does not grow for ever."""
        for account in [account for account in self._buckets if self._balance(account) >= self.per_minute]:
            del self._buckets[account]

    def _balance(self, account: str) -> float:
        now = self.clock()
        balance, since = self._buckets.get(account, (float(self.per_minute), now))
        return min(balance + (now - since) * self.per_minute / 60, float(self.per_minute))
