"""Runs jobs on a Ray cluster: one worker an actor, a lost worker replaced at the cost of the job it was doing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
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

from edge_runtime.errors import CogenesisError, MissingExtraError
from personalization.errors import RunnerError
from personalization.jobs.backlog import Attempt, Backlog, J, JobError, R, Worker, perform
from personalization.jobs.runners import RayRunner, processors

if TYPE_CHECKING:
    from types import ModuleType

# Ray's handles of actors and of results to come have no types of their own.
Actor: TypeAlias = Any
Ref: TypeAlias = Any

# Jobs and results are small; more than Ray's minimum would only ask more of /dev/shm than a container may have.
OBJECT_STORE_BYTES = 80 * 2**20
# Ray puts sockets into it, 64 characters deeper; the path of a socket ends at 103 (macOS) or 107 (Linux).
LONGEST_DIRECTORY = 103 - 64
CONNECT_SECONDS = 5.0
# Ray gives its processes half a minute to be up. Where that was too little, they are in the file cache next time.
ATTEMPTS = 3
# Ray's threads in this process, by name. They print to stdout what happens to workers, which belongs to our output.
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
    """An actor: holds one worker in a process of its own."""

    def open(self, make_worker: Callable[[], Worker[Any, Any]]) -> Exception | None:
        """Make the worker, and say what kept it from being made."""
        try:
            self._worker = make_worker()
        except CogenesisError as error:
            return error
        except Exception as error:
            return RunnerError(f"A worker can't start: {type(error).__name__}: {error}")
        return None

    def run(self, attempt: Attempt[Any]) -> object:
        """Do one job: its result, or a `JobError`."""
        outcome = perform(self._worker, attempt)
        try:
            pickle.dumps(outcome)
        except Exception as error:
            return JobError(type(error).__name__, f"The result can't travel: {error}", attempt.number, final=True)
        return outcome


class _Pool(Generic[J, R]):
    """The workers of one run, and what each is doing."""

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
        # Losses are counted and made up for here, since Ray itself would repeat whatever was lost without end or never.
        self._host = ray.remote(num_cpus=threads, max_restarts=0, max_task_retries=0)(WorkerHost)
        self._starting: dict[Ref, Actor] = {}
        self._idle: list[Actor] = []
        self._busy: dict[Ref, tuple[Actor, Attempt[J]]] = {}
        self._lost_starts = 0

    def outcomes(self) -> Iterator[tuple[int, R | JobError]]:
        """What becomes of each job, as soon as it is known.

        Raises:
            RunnerError: no worker is left, or the cluster is gone.
            CogenesisError: what kept a worker from being made.
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
        """Give up what still runs."""
        for actor in [*self._starting.values(), *self._idle, *(actor for actor, _ in self._busy.values())]:
            self._kill(actor)

    def _man(self) -> None:
        """Start as many workers as are missing and have something to do."""
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
            # Perhaps the machines hold fewer than were asked for: go on with those that start.
            self._workers -= self._lost_starts > self._backlog.retries
            if not self._workers:
                raise RunnerError(
                    f"No worker can start on the cluster: {_first_line(lost)}. Its machines need this version of "
                    "cogenesis-edge, and memory for what each worker loads (see --workers)."
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
            reason = f"{_first_line(lost)}. Often memory is short: take fewer --workers."
            return JobError("WorkerLost", reason, attempt.number)
        self._idle.append(actor)
        return outcome

    def _kill(self, actor: Actor) -> None:
        # It may be dead already, or the cluster with it.
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            self._ray.kill(actor)


@contextmanager
def connected(runner: RayRunner, jobs: int) -> Iterator[ModuleType]:
    """Ray, connected to what this program is connected to already, else to the address, else to a cluster made here."""
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
        workers = min(runner.workers or max(1, processors() // runner.threads), jobs)
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
    """A directory for one cluster: what Ray leaves behind goes with it, and `auto` finds no cluster that is gone."""
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
        except Exception as error:  # a node that is late is nothing more special
            ray.shutdown()
            if attempt == attempts:
                raise RunnerError(f"{cluster} can't be used: {_first_line(error)}. {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _load_ray() -> ModuleType:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError(
            "Running on a cluster needs a package that is not installed: ray. Run `pip install 'cogenesis-edge[ray]'`."
        )
    # Read by Ray while it is imported, and by the processes that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Otherwise workers get what all other programs leave over, which can be next to nothing.
    os.environ.setdefault("RAY_worker_niceness", "0")
    return importlib.import_module("ray")


def _reach(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for two minutes and fill the screen."""
    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if where == "auto":
        return
    parts = urlsplit(where if "://" in where else f"//{where}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port:
        raise RunnerError(f"Not the address of a Ray cluster: {where}. Give auto, host:port or ray://host:port.")
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise RunnerError(
            f"No Ray cluster answers at {where}: {error}. Start one with `ray start --head`, or leave --address out."
        ) from error


def _places(ray: ModuleType, threads: int) -> int:
    """How many workers the cluster has processors for.

    Raises:
        RunnerError: none.
    """
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    places = sum(int(processors // threads) for processors in machines)
    if not places:
        raise RunnerError(
            f"No machine of the cluster has {threads} processors for a worker. Take fewer --threads, or say how many "
            "--workers to wait for."
        )
    return places


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this program's answer to SIGTERM; Ray puts its own in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _WithoutRay:
    """A stream on which everybody may write but Ray's own threads."""

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
    """Keep Ray's reports of dead workers, for which it has no switch, out of what a command prints for programs."""
    with contextlib.redirect_stdout(_WithoutRay(sys.stdout)):
        yield


def _first_line(error: Exception) -> str:
    # What was raised elsewhere comes wrapped in the text of its traceback.
    text = str(getattr(error, "cause", None) or error)
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), type(error).__name__)
