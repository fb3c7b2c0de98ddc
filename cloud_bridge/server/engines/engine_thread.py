"""The single thread that runs the engine: alternates between short jobs and long work, and estimates their wait."""

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
"""Weight of the newest job in the running mean of job durations."""


class EngineThread:
    """Runs one small job at a time, without blocking the event loop.

    There are two queues; if both have jobs, the thread alternates between them. The first runs jobs in order of
    arrival. A session submits its next job only after the result of the last, so sessions take turns. The second holds
    the parts of long work, mainly reading prompts, and runs the oldest work first. If prompts alternated too, all would
    finish as late as the last.

    Attributes:
        waiting: number of unfinished jobs, without those from `later`.
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
        """Run a short job and wait for its result.

        A job that is canceled while it waits never runs. A running job always finishes before any later job.

        Returns:
            The job's result and its duration in seconds.
        """
        result, seconds, _ = await self.run_parts(lambda: (job(*arguments),), 0.0)
        return result[0], seconds

    async def run_parts(self, part: Callable[[], Result | None], since: float) -> tuple[Result, float, int]:
        """Call `part` repeatedly, alternating with other work, until it returns a result instead of None.

        The first part goes into the first queue, because most requests need only one. Cancellation ends the work
        between two parts.

        Args:
            part: does one part of the work.
            since: time of the request; all calls must use the same clock.

        Returns:
            The result, the total duration of all parts in seconds, and the number of parts.
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
            elif future.set_running_or_notify_cancel():  # it may have been canceled meanwhile
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
        """Run a job after the queued short ones, without waiting for it; does nothing after `close`."""

        def work() -> None:
            try:
                job(*arguments)
            except Exception as error:  # the message may contain a user's text
                log.error("fault", extra={"fields": {"error": type(error).__name__}})

        self._put(work, None)

    @property
    def expected_wait(self) -> float:
        """Expected time in seconds that a new job waits in the queue."""
        return self.waiting * self._mean

    def close(self) -> None:
        """End the thread after its current job."""
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
