"""Threads follow affinity and CPU quota, read from files as Linux has them, and from a real control group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.machine.threads import MAX_DEFAULT_THREADS, default_threads, usable_cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CASES: dict[str, tuple[int, str, str, dict[str, str]]] = {
    "no limit": (16, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}),
    "a container": (2, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "200000 100000\n"}),
    "half a core": (1, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 100000\n"}),
    "a core and a half": (1, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "150000 100000\n"}),
    "another period": (4, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "40000 10000\n"}),
    "more than there are": (16, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "9900000 100000\n"}),
    "a service": (
        3,
        "0::/system.slice/a.service\n",
        V2,
        {"sys/fs/cgroup/system.slice/a.service/cpu.max": "300000 100000", "sys/fs/cgroup/cpu.max": "max 100000"},
    ),
    "a group around it": (
        2,
        "0::/user.slice/app\n",
        V2,
        {"sys/fs/cgroup/user.slice/app/cpu.max": "800000 100000", "sys/fs/cgroup/user.slice/cpu.max": "200000 100000"},
    ),
    "cgroup v1": (
        2,
        "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n",
        V1,
        {f"{CPU}/docker/abc/cpu.cfs_quota_us": "200000", f"{CPU}/docker/abc/cpu.cfs_period_us": "100000"},
    ),
    "cgroup v1 without a limit": (
        16,
        "3:cpu,cpuacct:/\n",
        V1,
        {f"{CPU}/cpu.cfs_quota_us": "-1\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
    ),
    "a container that sees its own group as the root": (
        3,
        "3:cpu,cpuacct:/docker/abc\n",
        V1.replace("0:29 / ", "0:29 /docker/abc "),
        {f"{CPU}/cpu.cfs_quota_us": "300000", f"{CPU}/cpu.cfs_period_us": "100000"},
    ),
    "a group outside of what is mounted": (
        5,
        "0::/../../other\n",
        V2,
        {"sys/fs/cgroup/cpu.max": "500000 100000", "other/cpu.max": "100000 100000"},
    ),
    "both versions": (
        2,
        "1:cpu:/\n0::/\n",
        V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        {
            f"{CPU}/cpu.cfs_quota_us": "200000",
            f"{CPU}/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/cgroup.procs": "",
        },
    ),
    "a mount point with a space": (
        4,
        "0::/\n",
        V2.replace("/sys/fs/cgroup ", "/mnt/c\\040g "),
        {"mnt/c g/cpu.max": "400000 100000"},
    ),
    "odd files": (16, "no\n::\n0::\n3:cpu\n", "x\n - \n", {"sys/fs/cgroup/cpu.max": "0 0"}),
    "odd limits": (16, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "1 0\n"}),
}


@pytest.mark.parametrize(("expected", "cgroup", "mounts", "files"), CASES.values(), ids=CASES)
def test_quotas_limit_the_cores(tmp_path, expected, cgroup, mounts, files):
    assert usable_cores(machine(tmp_path, cgroup, mounts, files)) == expected


def test_affinity_limits_the_cores(tmp_path, monkeypatch):
    root = machine(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": "700000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    assert usable_cores(root) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores(root) == 7
    assert usable_cores(tmp_path / "nowhere") == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "nowhere") == 1


def test_defaults_are_bounded(monkeypatch):
    monkeypatch.setattr("edge_runtime.machine.threads.usable_cores", lambda: 64)
    assert default_threads() == MAX_DEFAULT_THREADS


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real control group that gives half a core; its directory."""
    for place, limits in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
        (Path("/sys/fs/cgroup"), {"cpu.max": "50000 100000"}),
    ):
        group = place / f"cogenesis-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, value in limits.items():
                (group / name).write_text(value)
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no control group can be made here")


def test_a_real_quota_is_found(half_a_core: Path):
    code = "import sys; sys.stdin.readline(); from edge_runtime.machine.threads import usable_cores as n; print(n())"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    (half_a_core / "cgroup.procs").write_text(str(process.pid))
    said, _ = process.communicate("\n", timeout=60)
    assert said.strip() == "1"
