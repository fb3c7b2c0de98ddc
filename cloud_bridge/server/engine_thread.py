"""The one thread in which the engine runs: jobs in the order of their coming, and how long they wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")

_WEIGHT = 0.05
"""Of the newest job in the running mean of what a job takes."""


class EngineThread:
    """Runs jobs one after the other, from the event loop's view without waiting.

    A session gives its next job only when it has the result of the last, and long work comes as many small jobs. So
    first come, first served lets sessions take turns, and a long prompt holds nobody up.

    Attributes:
        waiting: jobs that are not done.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._mean = 0.0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cogenesis-engine")

    async def run(self, job: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
        """Wait for a job's turn and its end.

        A job that is cancelled while it waits never runs; one that runs goes on to its end, before any later job.

        Returns:
            Its result, and the seconds that it took.
        """
        self.waiting += 1
        try:
            result, seconds = await asyncio.get_running_loop().run_in_executor(self._pool, _timed, job, arguments)
        finally:
            self.waiting -= 1
        self._mean += (seconds - self._mean) * (_WEIGHT if self._mean else 1.0)
        return result, seconds

    def later(self, job: Callable[..., object], *arguments: Any) -> None:
        """Run a job behind all others; nobody waits for it."""
        with suppress(RuntimeError):  # the server has stopped, and its engine with it
            self._pool.submit(job, *arguments)

    @property
    def expected_wait(self) -> float:
        """Seconds that a job which came now would wait for its turn."""
        return self.waiting * self._mean

    def close(self) -> None:
        """End the thread, after the job it is at."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _timed(job: Callable[..., Result], arguments: tuple[Any, ...]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = job(*arguments)
    return result, time.perf_counter() - start
