"""Limits each caller's tokens per minute with a token bucket."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.wire import Reason


@dataclass(frozen=True, slots=True)
class Caller:
    """The client that makes a call.

    Attributes:
        name: name of the API key; "" if the server has no keys.
        account: the account for quotas: the key, or the peer's address if the server has no keys.
    """

    name: str
    account: str


@dataclass(eq=False, slots=True)
class TokenQuota:
    """A token bucket per account (Turner 1986), which holds the tokens of one minute and refills in a minute.

    A request is charged when it is done and may overdraw the bucket, because its cost is unknown before.

    Attributes:
        per_minute: tokens; 0 sets no limit.
        clock: a monotonic clock in seconds.
    """

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def check(self, account: str) -> None:
        """Check that an account has tokens left.

        Raises:
            RefusalError: the account has used up its tokens.
        """
        if not self.per_minute:
            return
        balance = self._balance(account)
        if balance < 1:
            wait = (1 - balance) * 60 / self.per_minute
            raise RefusalError(Reason.QUOTA, f"{self.per_minute} tokens a minute are used up", retry_after=wait)

    def charge(self, account: str, tokens: int) -> None:
        """Charge `tokens` to an account."""
        if self.per_minute and tokens:
            self._buckets[account] = (self._balance(account) - tokens, self.clock())

    def forget_full(self) -> None:
        """Remove accounts whose buckets are full again, so that the table does not grow without limit."""
        for account in [account for account in self._buckets if self._balance(account) >= self.per_minute]:
            del self._buckets[account]

    def _balance(self, account: str) -> float:
        now = self.clock()
        balance, since = self._buckets.get(account, (float(self.per_minute), now))
        return min(balance + (now - since) * self.per_minute / 60, float(self.per_minute))
