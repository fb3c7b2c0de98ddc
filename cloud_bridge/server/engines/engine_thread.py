"""The one thread in which the engine runs: short jobs and long work in turn, and how long they wait."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

log = logging.getLogger("cloud_bridge.server")

Result = TypeVar("Result")

_WEIGHT = 0.05
"""Of the newest job in the running mean of what a job takes."""


class EngineThread:
    """Runs one small job at a time; from the event loop's view without waiting.

    There are two lanes, and where both have jobs they take turns. In the first jobs run as they come; a session gives
    its next one only when it has the result of the last, so sessions take turns. In the second are the parts of long
    work, a prompt that is read above all, and what was asked for first comes first: if prompts took turns too, all
    would be done as late as the last.

    Attributes:
        waiting: jobs that are not done, but for those that nobody waits for.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._mean = 0.0
        self._short: deque[Callable[[], None]] = deque()
        self._long: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._long_is_next = False
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="cogenesis-engine", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
        """Wait for a short job's turn and its end.

        A job that is cancelled while it waits never runs; one that runs goes on to its end, before any later job.

        Returns:
            Its result, and the seconds that it took.
        """
        result, seconds, _ = await self.run_parts(lambda: (job(*arguments),), 0.0)
        return result[0], seconds

    async def run_parts(self, part: Callable[[], Result | None], since: float) -> tuple[Result, float, int]:
        """Run `part` again and again, in turn with others, until it gives a result instead of None.

        The first part goes into the first lane: most requests need no more. Cancelling ends the work between two parts.

        Args:
            part: of the work.
            since: when the work was asked for, on any one clock.

        Returns:
            The result, the seconds that all parts took, and how many they were.
        """
        future: Future[Any] = Future()
        took: list[float] = []

        def work() -> None:
            if future.cancelled():
                return
            start = time.perf_counter()
            result: Result | None = None
            failure: BaseException | None = None
            try:
                result = part()
            except BaseException as error:
                failure = error
            took.append(time.perf_counter() - start)
            if result is None and failure is None:
                self._put(work, since)
            elif future.set_running_or_notify_cancel():  # it may have been cancelled meanwhile
                future.set_exception(failure) if failure is not None else future.set_result(result)

        self.waiting += 1
        try:
            self._put(work, None)
            result = await asyncio.wrap_future(future)
        finally:
            self.waiting -= 1
        for seconds in took:
            self._mean += (seconds - self._mean) * (_WEIGHT if self._mean else 1.0)
        return result, sum(took), len(took)

    def later(self, job: Callable[..., object], *arguments: Any) -> None:
        """Run a job behind the short ones; nobody waits for it. Nothing happens once the thread was closed."""

        def work() -> None:
            try:
                job(*arguments)
            except Exception as error:  # its words may hold what a user wrote
                log.error("fault", extra={"fields": {"error": type(error).__name__}})

        self._put(work, None)

    @property
    def expected_wait(self) -> float:
        """Seconds that a job which came now would wait for its turn."""
        return self.waiting * self._mean

    def close(self) -> None:
        """End the thread, after the job it is at."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _put(self, work: Callable[[], None], since: float | None) -> None:
        with self._change:
            if since is None:
                self._short.append(work)
            else:
                heapq.heappush(self._long, (since, next(self._count), work))
            self._change.notify()

    def _work(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], None] | None:
        with self._change:
            self._change.wait_for(lambda: self._closed or self._short or self._long)
            if self._closed:
                return None
            take_long = bool(self._long) and (self._long_is_next or not self._short)
            self._long_is_next = not take_long
            return heapq.heappop(self._long)[2] if take_long else self._short.popleft()
