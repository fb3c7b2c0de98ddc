"""Runs many independent jobs, in this process or on a Ray cluster, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager

from personalization.jobs.backlog import Backlog, J, JobError, R, Worker, perform
from personalization.jobs.interrupts import terminated_as_interrupt
from personalization.jobs.runners import RayRunner, Runner


@contextmanager
def run_jobs(
    make_worker: Callable[[], Worker[J, R]], jobs: Sequence[J], runner: Runner, *, retries: int = 2
) -> Iterator[Iterator[tuple[int, R | JobError]]]:
    """Run independent jobs and give what becomes of each as soon as it is known, in any order.

    A job that raises a `CogenesisError` is wrong itself and fails at once. What else goes wrong (the disk, the memory,
    a worker that dies) can pass: the job is tried again after all others. No failure touches another job.
    On a cluster everything given here must be importable there, since it travels by name.

    Example: with run_jobs(partial(AdapterTrainer, spec), users, LocalRunner()) as outcomes:
                 for index, outcome in outcomes: ...

    Args:
        make_worker: makes what does a job; called once a process, so it may hold what takes long to load. The results
            of a worker must not depend on which jobs it did before.
        jobs: each is given to one worker.
        runner: where to run.
        retries: how often a job is tried again after a failure that may pass.

    Yields:
        For each job its index and its result, or why there is none. On leaving the context, at SIGTERM (as
        KeyboardInterrupt) and at Ctrl-C, jobs that still run are given up, and what was started is shut down.

    Raises:
        RunnerError: the cluster can't be reached, or its workers keep dying.
        MissingExtraError: Ray is not installed.
        CogenesisError: what `make_worker` raised: no job can run then.
    """
    backlog = Backlog(jobs, retries)
    with terminated_as_interrupt():
        if not backlog:
            yield iter(())
        elif isinstance(runner, RayRunner):
            from personalization.jobs.ray_cluster import run_on_ray

            with run_on_ray(make_worker, backlog, runner) as outcomes:
                yield outcomes
        else:
            with closing(_run_here(make_worker, backlog)) as outcomes:
                yield outcomes


def _run_here(make_worker: Callable[[], Worker[J, R]], backlog: Backlog[J]) -> Generator[tuple[int, R | JobError]]:
    worker = make_worker()
    while backlog:
        attempt = backlog.take()
        outcome = perform(worker, attempt)
        if not (isinstance(outcome, JobError) and backlog.takes_back(attempt, outcome)):
            yield attempt.index, outcome
