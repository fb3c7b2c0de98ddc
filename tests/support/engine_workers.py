"""Jobs for the tests of runners: they count, fail, die or get interrupted on request."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from edge_runtime.errors import RequestError
from personalization.jobs.backlog import JobError
from personalization.jobs.run_jobs import run_jobs
from personalization.jobs.runners import Runner

Trouble = Literal["none", "wrong", "flaky", "broken", "dies once", "dies always", "slow", "meets"]


@dataclass(frozen=True)
class Walk:
    """A random walk with its own seed, which succeeds or fails."""

    seed: int
    trouble: Trouble = "none"


class Walker:
    """Writes each walk to its own file, and logs each try in a file next to it."""

    def __init__(self, directory: Path, *, raising: type[Exception] | None = None, dying: bool = False) -> None:
        if raising is not None:
            raise raising("there is no such base")
        if dying:
            os.kill(os.getpid(), signal.SIGKILL)
        self.directory = directory

    def __call__(self, walk: Walk) -> tuple[int, float]:
        tries = self.directory / f"{walk.seed}.tries"
        with tries.open("a") as log:
            print(os.getpid(), file=log)
        tried = len(tries.read_text().split())
        if walk.trouble == "wrong":
            raise RequestError(f"Walk {walk.seed} has no items.")
        if walk.trouble == "broken" or (walk.trouble == "flaky" and tried == 1):
            raise OSError("the disk\nis away")
        if walk.trouble == "dies always" or (walk.trouble == "dies once" and tried == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if walk.trouble == "slow":
            time.sleep(600)
        while walk.trouble == "meets" and not (self.directory / f"{walk.seed ^ 1}.tries").exists():
            time.sleep(0.01)  # until a neighbour has started, which needs another worker
        steps = np.random.default_rng(walk.seed).normal(size=1000).cumsum()
        (self.directory / f"{walk.seed}.walk").write_bytes(steps.tobytes())
        return walk.seed, float(steps[-1])


def walk_all(directory: Path, walks: Sequence[Walk], runner: Runner, **worker: object) -> dict[int, object]:
    """Run walks; return the outcome of each by index."""
    with run_jobs(partial(Walker, directory, **worker), walks, runner) as outcomes:
        return dict(outcomes)


def files(directory: Path) -> dict[str, bytes]:
    """Return the contents of the files of finished walks."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.walk"))}


def tries(directory: Path, seed: int) -> list[int]:
    """Return the process id of each try of a walk."""
    return [int(line) for line in (directory / f"{seed}.tries").read_text().split()]


def drive(directory: str, runner: Runner, *walks: Walk) -> None:
    """Run walks as a command does: print a line of JSON for each finished walk; exit with 130 when interrupted."""
    try:
        with run_jobs(partial(Walker, Path(directory)), walks, runner) as outcomes:
            for index, outcome in outcomes:
                print(json.dumps([index, outcome.kind if isinstance(outcome, JobError) else outcome]), flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
