"""Specifies where jobs run: in this process or on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from personalization.errors import RunnerError


class RunnerName(StrEnum):
    """Where jobs run."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """Runs jobs in this process, with one worker, one after another."""


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs jobs on a Ray cluster, where each worker does one job at a time.

    Attributes:
        address: `auto`, `host:port` or `ray://host:port` of a running cluster; None starts one on this machine, which
            ends with the run.
        workers: number of workers; None: as many as the cluster has CPUs for.
        threads: CPUs per worker.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1


Runner: TypeAlias = LocalRunner | RayRunner


def runner_of(runner: RunnerName | str, address: str | None, workers: int | None, threads: int) -> Runner:
    """Return the runner that these settings specify.

    Args:
        runner: `local` or `ray`.
        address: address of a running Ray cluster.
        workers: number of workers.
        threads: CPUs per worker.

    Raises:
        RunnerError: the settings contradict each other.
    """
    if workers is not None and workers < 1:
        raise RunnerError(f"`workers` must be at least 1, not {workers}.")
    if RunnerName(runner) is RunnerName.RAY:
        return RayRunner(address, workers, threads)
    if address is not None or workers is not None:
        raise RunnerError("`address` and `workers` are for a cluster. Set `runner` to ray, or leave them out.")
    return LocalRunner()
