"""Jobs that wait, are tried and are done."""

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
        kind: the exception's class, or `WorkerLost`.
        message: one line: what was wrong.
        attempts: how often the job was tried.
        final: trying again can't help, since the job itself is wrong.
        trace: where it happened, if nobody expected it; else empty.
    """

    kind: str
    message: str
    attempts: int
    final: bool = False
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[J]):
    """One try at a job: the job, its index, and the number of the try, from 1."""

    index: int
    job: J
    number: int


class Backlog(Generic[J]):
    """The jobs that still have to be done, in the order in which they are to be tried."""

    def __init__(self, jobs: Sequence[J], retries: int) -> None:
        self._attempts = deque(Attempt(index, job, 1) for index, job in enumerate(jobs))
        self._retries = retries

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def retries(self) -> int:
        """How often something that failed is tried again."""
        return self._retries

    def take(self) -> Attempt[J]:
        """The next job to try."""
        return self._attempts.popleft()

    def takes_back(self, attempt: Attempt[J], error: JobError) -> bool:
        """Queue a failed job behind all others, unless that is pointless or was done often enough."""
        if error.final or attempt.number > self._retries:
            return False
        self._attempts.append(Attempt(attempt.index, attempt.job, attempt.number + 1))
        return True


def perform(worker: Worker[J, R], attempt: Attempt[J]) -> R | JobError:
    """Do one job: its result, or what it raised."""
    try:
        return worker(attempt.job)
    except CogenesisError as error:
        return JobError(type(error).__name__, _line(error), attempt.number, final=True)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return JobError(type(error).__name__, _line(error), attempt.number, trace=trace)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
