"""Ends calls that wait too long for the cloud."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf


class Watchdog:
    """Calls `expire` once when a request has waited longer than `timeout` seconds.

    The watchdog polls the oldest wait instead of tracking each message, so messages cost nothing. A wait that begins
    while the thread sleeps can't expire before the thread wakes.
    """

    def __init__(self, timeout: float, oldest_wait: Callable[[], float | None], expire: Callable[[], None]) -> None:
        """Start watching.

        Args:
            timeout: seconds.
            oldest_wait: returns the start of the oldest wait (`time.monotonic`), or None if nothing waits.
            expire: called in the watchdog's own thread.
        """
        self._timeout = timeout
        self._oldest_wait = oldest_wait
        self._expire = expire
        self._woken = threading.Event()
        self._stopped = False
        self._latest = inf
        self._thread = threading.Thread(target=self._watch, name="cogenesis-deadline", daemon=True)
        self._thread.start()

    def expire_within(self, seconds: float) -> None:
        """Expire after `seconds` in any case, unless stopped first."""
        self._latest = time.monotonic() + seconds
        self._woken.set()

    def stop(self) -> None:
        """Tell the thread to end; does not wait for it, so any thread may call it."""
        self._stopped = True
        self._woken.set()

    def _watch(self) -> None:
        pause = self._timeout
        while True:
            if self._woken.wait(pause):
                self._woken.clear()
            if self._stopped:
                return
            since = self._oldest_wait()
            now = time.monotonic()
            pause = min(self._timeout if since is None else since + self._timeout - now, self._latest - now)
            if pause <= 0:
                self._expire()
                return
