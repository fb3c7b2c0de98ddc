"""Runs jobs on a Ray cluster with one worker per actor; losing a worker costs only one attempt at its current job."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeAlias
from urllib.parse import urlsplit

from edge_runtime.errors import CogenesisError
from edge_runtime.extras import require_packages
from edge_runtime.machine.threads import usable_cores
from personalization.errors import RunnerError
from personalization.jobs.backlog import Attempt, Backlog, J, JobError, R, Worker, perform
from personalization.jobs.runners import RayRunner

if TYPE_CHECKING:
    from types import ModuleType

# Ray's actor handles and object references have no types of their own.
Actor: TypeAlias = Any
Ref: TypeAlias = Any

# Jobs and results are small; more than Ray's minimum might not fit into a container's /dev/shm.
OBJECT_STORE_BYTES = 80 * 2**20
# Ray's sockets get paths 64 characters longer than this; a socket's path may have 103 (macOS) or 107 (Linux).
LONGEST_DIRECTORY = 103 - 64
CONNECT_SECONDS = 5.0
# Ray's processes must start within half a minute. After a timeout, the file cache makes the next attempt faster.
ATTEMPTS = 3
# Name prefix of Ray's threads in this process. They print reports about workers to stdout, among our output.
RAY_THREADS = "ray_"


@contextmanager
def run_on_ray(
    make_worker: Callable[[], Worker[J, R]], backlog: Backlog[J], runner: RayRunner
) -> Iterator[Iterator[tuple[int, R | JobError]]]:
    """Run a backlog of jobs on a cluster; see `run_jobs`.

    Raises:
        RunnerError: the cluster can't be reached, or its workers keep dying.
        MissingExtraError: Ray is not installed.
    """
    with _quiet_stdout(), connected(runner, len(backlog)) as ray:
        workers = min(runner.workers or _places(ray, runner.threads), len(backlog))
        pool = _Pool(ray, make_worker, backlog, workers, runner.threads)
        try:
            yield pool.outcomes()
        finally:
            pool.close()


class WorkerHost:
    """An actor that holds one worker in its own process."""

    def open(self, make_worker: Callable[[], Worker[Any, Any]]) -> Exception | None:
        """Create the worker; return the error if that fails."""
        try:
            self._worker = make_worker()
        except CogenesisError as error:
            return error
        except Exception as error:
            return RunnerError(f"A worker can't start: {type(error).__name__}: {error}")
        return None

    def run(self, attempt: Attempt[Any]) -> object:
        """Do one job; return its result or a `JobError`."""
        outcome = perform(self._worker, attempt)
        try:
            pickle.dumps(outcome)
        except Exception as error:
            return JobError(type(error).__name__, f"The result can't travel: {error}", attempt.number, final=True)
        return outcome


class _Pool(Generic[J, R]):
    """The workers of one run, and the job of each."""

    def __init__(
        self,
        ray: ModuleType,
        make_worker: Callable[[], Worker[J, R]],
        backlog: Backlog[J],
        workers: int,
        threads: int,
    ) -> None:
        self._ray = ray
        self._make_worker = make_worker
        self._backlog = backlog
        self._workers = workers
        # Losses are counted and handled here: Ray itself would retry forever or never.
        self._host = ray.remote(num_cpus=threads, max_restarts=0, max_task_retries=0)(WorkerHost)
        self._starting: dict[Ref, Actor] = {}
        self._idle: list[Actor] = []
        self._busy: dict[Ref, tuple[Actor, Attempt[J]]] = {}
        self._lost_starts = 0

    def outcomes(self) -> Iterator[tuple[int, R | JobError]]:
        """Yield each job's outcome as soon as it is known.

        Raises:
            RunnerError: no worker is left, or the cluster is gone.
            CogenesisError: the error that prevented the creation of a worker.
        """
        while self._backlog or self._busy:
            self._man()
            while self._idle and self._backlog:
                actor, attempt = self._idle.pop(), self._backlog.take()
                self._busy[actor.run.remote(attempt)] = actor, attempt
            try:
                (ref,), _ = self._ray.wait([*self._starting, *self._busy], num_returns=1)
            except (self._ray.exceptions.RayError, ConnectionError) as error:
                raise RunnerError(f"The Ray cluster was lost: {_first_line(error)}. Start again to go on.") from error
            if ref in self._starting:
                self._started(ref)
                continue
            actor, attempt = self._busy.pop(ref)
            outcome = self._outcome(ref, actor, attempt)
            if not (isinstance(outcome, JobError) and self._backlog.takes_back(attempt, outcome)):
                yield attempt.index, outcome

    def close(self) -> None:
        """Abandon everything that still runs."""
        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._busy.values())]:
            self._kill(actor)

    def _man(self) -> None:
        """Start missing workers, as far as there is work for them."""
        there = len(self._starting) + len(self._idle) + len(self._busy)
        wanted = min(self._workers, len(self._backlog) + len(self._busy))
        for _ in range(wanted - there):
            actor = self._host.remote()
            self._starting[actor.open.remote(self._make_worker)] = actor

    def _started(self, ref: Ref) -> None:
        actor = self._starting.pop(ref)
        try:
            error = self._ray.get(ref)
        except self._ray.exceptions.RayError as lost:
            self._kill(actor)
            self._lost_starts += 1
            # The machines may have room for fewer workers than requested: continue with those that start.
            self._workers -= self._lost_starts > self._backlog.retries
            if not self._workers:
                raise RunnerError(
                    f"No worker can start on the cluster: {_first_line(lost)}. Its machines need this version of "
                    "cogenesis-edge, and memory for what each worker loads. Take fewer `workers`."
                ) from lost
            return
        self._idle.append(actor)
        if error is not None:
            raise error
        self._lost_starts = 0

    def _outcome(self, ref: Ref, actor: Actor, attempt: Attempt[J]) -> R | JobError:
        try:
            outcome: R | JobError = self._ray.get(ref)
        except self._ray.exceptions.RayError as lost:
            self._kill(actor)
            reason = f"{_first_line(lost)}. Often memory is short. Take fewer `workers`."
            return JobError("WorkerLost", reason, attempt.number)
        self._idle.append(actor)
        return outcome

    def _kill(self, actor: Actor) -> None:
        # The actor or the whole cluster may already be gone.
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            self._ray.kill(actor)


@contextmanager
def connected(runner: RayRunner, jobs: int) -> Iterator[ModuleType]:
    """Yield Ray, connected to this program's existing cluster, else to the address, else to a new local cluster."""
    ray = _load_ray()
    if runner.address is not None:
        _reach(runner.address)
    if ray.is_initialized():
        yield ray
    elif runner.address is not None:
        remedy = "Its version of Ray must be this one's; if it asks for a token, set RAY_AUTH_MODE=token and the token."
        with _session(ray, f"The Ray cluster at {runner.address}", remedy, address=runner.address):
            yield ray
    else:
        workers = min(runner.workers or max(1, usable_cores() // runner.threads), jobs)
        with (
            _own_directory() as directory,
            _session(
                ray,
                "A Ray cluster on this machine",
                "RAY_TMPDIR names another directory for its files.",
                attempts=ATTEMPTS,
                address="local",
                num_cpus=workers * runner.threads,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=directory,
            ),
        ):
            yield ray


@contextmanager
def _own_directory() -> Iterator[str]:
    """Yield a directory for one cluster. Ray's leftovers are removed with it, and `auto` finds no stale cluster."""
    try:
        directory = tempfile.mkdtemp(prefix="cogenesis-ray-", dir=os.environ.get("RAY_TMPDIR"))
    except OSError as error:
        raise RunnerError(f"Ray needs a directory to work in: {error}. Set RAY_TMPDIR to one.") from error
    if len(directory) > LONGEST_DIRECTORY:
        Path(directory).rmdir()
        raise RunnerError(f"Ray needs a directory with a shorter path: {directory}. Set RAY_TMPDIR to one.")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _session(ray: ModuleType, cluster: str, remedy: str, *, attempts: int = 1, **options: object) -> Iterator[None]:
    for attempt in range(1, attempts + 1):
        try:
            with _own_sigterm():
                ray.init(log_to_driver=False, logging_level="ERROR", **options)
            break
        except Exception as error:  # Ray has no more specific error for a node that starts too slowly
            ray.shutdown()
            if attempt == attempts:
                raise RunnerError(f"{cluster} can't be used: {_first_line(error)}. {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _load_ray() -> ModuleType:
    require_packages("Running on a cluster", "ray", extra="ray")
    # Read by Ray while it is imported, and by the processes that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Otherwise workers get a low priority, and other programs may leave them almost no CPU time.
    os.environ.setdefault("RAY_worker_niceness", "0")
    return importlib.import_module("ray")


def _reach(address: str) -> None:
    """Reject an address that accepts no connection: Ray would retry for two minutes and flood the terminal."""
    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if where == "auto":
        return
    parts = urlsplit(where if "://" in where else f"//{where}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port:
        raise RunnerError(
            f"This is not the address of a Ray cluster: {where}. Give auto, host:port or ray://host:port."
        )
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise RunnerError(
            f"No Ray cluster answers at {where}: {error}. Start one with `ray start --head`, or leave out `address`."
        ) from error


def _places(ray: ModuleType, threads: int) -> int:
    """Return how many workers the cluster has CPUs for.

    Raises:
        RunnerError: there is no room for any.
    """
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    places = sum(int(processors // threads) for processors in machines)
    if not places:
        raise RunnerError(
            f"No machine of the cluster has {threads} processors for a worker. Take fewer `threads`, or set `workers` "
            "to how many to wait for."
        )
    return places


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this program's SIGTERM handler, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _WithoutRay:
    """A stream that ignores what Ray's own threads write."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith(RAY_THREADS):
            return len(text)
        return self._stream.write(text)


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep Ray's reports of dead workers out of a command's machine-readable output; Ray can't disable them."""
    with contextlib.redirect_stdout(_WithoutRay(sys.stdout)):
        yield


def _first_line(error: Exception) -> str:
    # An error from another process is wrapped in its traceback's text.
    text = str(getattr(error, "cause", None) or error)
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), type(error).__name__)
