"""Runs many independent jobs, in this process or on a Ray cluster, with the same results."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from edge_runtime.errors import CogenesisError
from personalization.errors import EngineError

if TYPE_CHECKING:
    from types import FrameType

J = TypeVar("J")
R = TypeVar("R")

Worker: TypeAlias = Callable[[J], R]


class EngineName(StrEnum):
    """Where jobs run."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """This process, one worker, one job after the other."""


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Workers on a Ray cluster, one job at a time each.

    Attributes:
        address: `auto`, `host:port` or `ray://host:port` of a running cluster; None starts one on this machine, which
            ends with the run.
        workers: how many; None: as many as the cluster has processors for.
        threads: processors that one worker uses.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1


Engine: TypeAlias = LocalEngine | RayEngine


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


def engine_of(name: EngineName | str, address: str | None, workers: int | None, threads: int) -> Engine:
    """The engine that a command's options `--engine`, `--address` and `--workers` ask for.

    Args:
        name: `local` or `ray`.
        address: of a running Ray cluster.
        workers: how many at once.
        threads: processors that one worker uses.

    Raises:
        EngineError: the options contradict each other.
    """
    if workers is not None and workers < 1:
        raise EngineError(f"--workers must be at least 1: {workers}.")
    if EngineName(name) is EngineName.RAY:
        return RayEngine(address, workers, threads)
    if address is not None or workers is not None:
        raise EngineError("--address and --workers are for a cluster. Add `--engine ray`, or leave them out.")
    return LocalEngine()


@contextmanager
def run_jobs(
    make_worker: Callable[[], Worker[J, R]], jobs: Sequence[J], engine: Engine, *, retries: int = 2
) -> Iterator[Iterator[tuple[int, R | JobError]]]:
    """Run independent jobs and give what becomes of each as soon as it is known, in any order.

    A job that raises a `CogenesisError` is wrong itself and fails at once. What else goes wrong (the disk, the memory,
    a worker that dies) can pass: the job is tried again after all others. No failure touches another job.
    On a cluster everything given here must be importable there, since it travels by name.

    Example: with run_jobs(partial(AdapterTrainer, spec), users, LocalEngine()) as outcomes:
                 for index, outcome in outcomes: ...

    Args:
        make_worker: makes what does a job; called once a process, so it may hold what takes long to load. The results
            of a worker must not depend on which jobs it did before.
        jobs: each is given to one worker.
        engine: where to run.
        retries: how often a job is tried again after a failure that may pass.

    Yields:
        For each job its index and its result, or why there is none. On leaving the context, at SIGTERM (as
        KeyboardInterrupt) and at Ctrl-C, jobs that still run are given up, and what was started is shut down.

    Raises:
        EngineError: the cluster can't be reached, or its workers keep dying.
        MissingExtraError: Ray is not installed.
        CogenesisError: what `make_worker` raised: no job can run then.
    """
    backlog = Backlog(jobs, retries)
    with terminated_as_interrupt():
        if not backlog:
            yield iter(())
        elif isinstance(engine, RayEngine):
            from personalization.engine_ray import run_on_ray

            with run_on_ray(make_worker, backlog, engine) as outcomes:
                yield outcomes
        else:
            with closing(_run_here(make_worker, backlog)) as outcomes:
                yield outcomes


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


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that what was started is shut down and half-written files go."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Only the main thread may, and gets signals anyway.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(make_worker: Callable[[], Worker[J, R]], backlog: Backlog[J]) -> Generator[tuple[int, R | JobError]]:
    worker = make_worker()
    while backlog:
        attempt = backlog.take()
        outcome = perform(worker, attempt)
        if not (isinstance(outcome, JobError) and backlog.takes_back(attempt, outcome)):
            yield attempt.index, outcome


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
