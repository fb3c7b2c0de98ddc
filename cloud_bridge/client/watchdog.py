"""Ends what waits too long for the cloud."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf


class Watchdog:
    """Calls `expire` once when something has waited longer than `timeout` seconds.

    It asks for the oldest wait instead of being told of each, so a message costs nothing here: what begins while the
    thread sleeps can't be due before it wakes.
    """

    def __init__(self, timeout: float, oldest_wait: Callable[[], float | None], expire: Callable[[], None]) -> None:
        """Start watching.

        Args:
            timeout: seconds.
            oldest_wait: since when (`time.monotonic`) the oldest wait lasts; None when nothing waits.
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
        """Expire then in any case, unless stopped before."""
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
