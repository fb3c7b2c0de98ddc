"""Where jobs run: in this process or on a Ray cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from personalization.errors import EngineError


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


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
