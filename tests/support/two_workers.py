"""Hooks for conftest.py that distribute the tests over several workers of pytest-xdist (`pytest -n 2`).

Each worker has its own CPU cores. The tests of a file stay together, so its fixtures are set up once. The slowest files
start first.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

# Files and folders of long tests, by their measured times. The last tests started should be short, or one worker waits
# for another at the end. `test_two_runtimes` lowers the model to ExecuTorch, which `test_readme` waits for.
LONGEST_FIRST = (
    "test_two_runtimes",
    "test_guarded_leaks",
    "jobs",
    "test_readme",
    "test_adapter_parity",
    "test_failures",
    "test_egress",
    "test_fused_reference",
    "executorch",
    "end_to_end",
    "engines",
    "retrievers",
    "adapters",
    "generation",
    "cogenesis",
    "export",
    "cloud_bridge",
    "personalization",
)


class FileByFile(LoadScopeScheduling):
    """Assigns one file after another, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "those that share a cluster" if file.endswith("_ray.py") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileByFile:
    """See pytest-xdist."""
    config.option.loadscopereorder = False
    return FileByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Pin a worker and its child processes to its own cores; two workers on one core would only take turns."""
    name = os.environ.get("PYTEST_XDIST_WORKER")
    if name is None or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    workers, index = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), int(name.removeprefix("gw"))
    os.sched_setaffinity(0, processors[index::workers] or {processors[index % len(processors)]})


def order(items: list[pytest.Item]) -> None:
    """Put long tests first if workers share the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    names = (path.stem, *(parent.name for parent in path.parents))
    return next((rank for rank, name in enumerate(LONGEST_FIRST) if name in names), len(LONGEST_FIRST))
