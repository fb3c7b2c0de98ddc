"""Holds pending jobs and performs one attempt at a job."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from edge_runtime.errors import CogenesisError

J = TypeVar("J")


R = TypeVar("R")


Worker: TypeAlias = Callable[[J], R]


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job has no result.

    Attributes:
        kind: class of the exception, or `WorkerLost`.
        message: what was wrong, in one line.
        attempts: number of attempts.
        final: a retry can't help, because the job itself is wrong.
        trace: traceback of an unexpected error, else empty.
    """

    kind: str
    message: str
    attempts: int
    final: bool = False
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[J]):
    """One attempt at a job: the job, its index, and the number of the attempt, from 1."""

    index: int
    job: J
    number: int


class Backlog(Generic[J]):
    """The pending jobs, in the order in which to try them."""

    def __init__(self, jobs: Sequence[J], retries: int) -> None:
        self._attempts = deque(Attempt(index, job, 1) for index, job in enumerate(jobs))
        self._retries = retries

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def retries(self) -> int:
        """Maximum number of retries after a failure."""
        return self._retries

    def take(self) -> Attempt[J]:
        """Take the next job to try."""
        return self._attempts.popleft()

    def takes_back(self, attempt: Attempt[J], error: JobError) -> bool:
        """Requeue a failed job at the end, unless a retry is pointless or its retries are used up."""
        if error.final or attempt.number > self._retries:
            return False
        self._attempts.append(Attempt(attempt.index, attempt.job, attempt.number + 1))
        return True


def perform(worker: Worker[J, R], attempt: Attempt[J]) -> R | JobError:
    """Do one job; return its result, or a `JobError` for what it raised."""
    try:
        return worker(attempt.job)
    except CogenesisError as error:
        return JobError(type(error).__name__, _line(error), attempt.number, final=True)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return JobError(type(error).__name__, _line(error), attempt.number, trace=trace)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
