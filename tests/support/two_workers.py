"""How several workers of pytest-xdist (`pytest -n 2`) share the tests: hooks for conftest.py.

Each has processors of its own. A file's tests stay together, so that its fixtures are made once; the files that take
longest are started first.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

# Files and folders of the long tests: what is started last should be short, or one worker waits for another at the end.
LONGEST_FIRST = ("test_two_runtimes", "test_adapter_parity", "end_to_end", "export", "cloud_bridge", "personalization")
# Tests whose cases take so long that each is handed out alone.
APART = ("test_every_strategy_writes_what_the_reference_writes", "test_no_private_fact_of_fifty_records_leaves")


class FileByFile(LoadScopeScheduling):
    """Hands out a file after the other, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.endswith("_ray.py"):
            return "those that share a cluster"
        return nodeid if test.partition("[")[0] in APART else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileByFile:
    """See pytest-xdist."""
    config.option.loadscopereorder = False
    return FileByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Give a worker its own processors, for all that it starts: threads of two on one would only take turns."""
    name = os.environ.get("PYTEST_XDIST_WORKER")
    if name is None or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    workers, index = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), int(name.removeprefix("gw"))
    os.sched_setaffinity(0, processors[index::workers] or {processors[index % len(processors)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first where workers share them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    names = (path.stem, path.parent.name)
    return next((rank for rank, name in enumerate(LONGEST_FIRST) if name in names), len(LONGEST_FIRST))
