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
    """Run independent jobs and yield the outcome of each as soon as it is known, in any order.

    A job that raises a `CogenesisError` is invalid and fails immediately. Any other failure (disk, memory, a dying
    worker) may be temporary: the job is retried after all others. A failure never affects other jobs. On a cluster all
    arguments must be importable, since they are pickled by name.

    Example: with run_jobs(partial(AdapterTrainer, spec), users, LocalRunner()) as outcomes:
                 for index, outcome in outcomes: ...

    Args:
        make_worker: creates the worker that does jobs. It is called once per process, so the worker may hold what loads
            slowly. A worker's results must not depend on its earlier jobs.
        jobs: each is given to one worker.
        runner: where to run.
        retries: maximum number of retries of a job after temporary failures.

    Yields:
        The index and the result of each job, or why there is none. On exit from the context, SIGTERM (as
        KeyboardInterrupt) or Ctrl-C, running jobs are abandoned and everything started is shut down.

    Raises:
        RunnerError: the cluster can't be reached, or its workers keep dying.
        MissingExtraError: Ray is not installed.
        CogenesisError: `make_worker` raised it, so no job can run.
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
