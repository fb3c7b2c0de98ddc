"""Where jobs run: in this process or on a Ray cluster."""

from __future__ import annotations

import os
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
    """This process, one worker, one job after the other."""


@dataclass(frozen=True, slots=True)
class RayRunner:
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


Runner: TypeAlias = LocalRunner | RayRunner


def runner_of(name: RunnerName | str, address: str | None, workers: int | None, threads: int) -> Runner:
    """The runner that a command's options `--runner`, `--address` and `--workers` ask for.

    Args:
        name: `local` or `ray`.
        address: of a running Ray cluster.
        workers: how many at once.
        threads: processors that one worker uses.

    Raises:
        RunnerError: the options contradict each other.
    """
    if workers is not None and workers < 1:
        raise RunnerError(f"--workers must be at least 1: {workers}.")
    if RunnerName(name) is RunnerName.RAY:
        return RayRunner(address, workers, threads)
    if address is not None or workers is not None:
        raise RunnerError("--address and --workers are for a cluster. Add `--runner ray`, or leave them out.")
    return LocalRunner()


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
