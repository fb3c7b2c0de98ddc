"""Chooses the default number of threads: the cores that this process may really use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Decoding is bound by memory bandwidth, so more threads than this only cost battery.
MAX_DEFAULT_THREADS = 8

_ESCAPED = re.compile(r"\\([0-7]{3})")


def default_threads() -> int:
    """Return the number of cores that this process may use, at most `MAX_DEFAULT_THREADS`."""
    return min(usable_cores(), MAX_DEFAULT_THREADS)


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1.

    That is the affinity, or all cores where the system has none, and at most the CPU quota of the process's control
    groups (cgroup v1 and v2), which is how containers are limited. With more threads than the quota pays for, all of
    them are stopped in the middle of a matrix product and wait for the next period. A fraction of a core is left out.

    Args:
        root: where `proc` and `sys` are; another place for tests.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quotas = (quota for directory in _cpu_groups(root) if (quota := _quota(directory)) is not None)
    return max(1, min(cores, int(min(quotas, default=float(cores)))))


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Yield the directories of the process's CPU control groups and of the groups around them."""
    own = dict(_own_groups(_read(root / "proc/self/cgroup")))
    for line in _read(root / "proc/self/mountinfo").splitlines():
        # ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS [FIELDS] - TYPE SOURCE SUPER-OPTIONS (proc(5))
        front, _, back = line.partition(" - ")
        mount, about = front.split(" "), back.split(" ")
        if len(mount) < 6 or len(about) < 3:
            continue
        is_v1 = about[0] == "cgroup" and "cpu" in about[2].split(",")
        path = own.get("cpu" if is_v1 else "") if is_v1 or about[0] == "cgroup2" else None
        if path is None:
            continue
        shown, point = (PurePosixPath(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), part)) for part in mount[3:5])
        # A container may see only its own group as the root of the mount.
        inside = PurePosixPath(path).relative_to(shown) if PurePosixPath(path).is_relative_to(shown) else None
        parts = () if inside is None or ".." in inside.parts else inside.parts
        for depth in range(len(parts) + 1):
            yield root.joinpath(point.relative_to("/"), *parts[:depth])


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    """Yield controllers and the path of the process's group in their hierarchy; "" is the hierarchy of cgroup v2."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            if path.startswith("/") and (controller or number == "0"):
                yield controller, path


def _quota(group: Path) -> float | None:
    """Return how many cores a control group may use at a time, or None if it sets no limit."""
    limit = _read(group / "cpu.max").split()
    if not limit:
        limit = [_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(number) for number in limit)
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux, or not allowed
        return ""
