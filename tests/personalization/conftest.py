"""A real Ray cluster with two workers' processors, started once a run by the product's own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from personalization.engine import RayEngine
from personalization.engine_ray import connected


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ModuleType]:
    """Ray, connected to a cluster on this machine: runs in this process use it, others connect to `ray_address`."""
    with pytest.MonkeyPatch.context() as patch:
        # Workers import what tests give them to do by name.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        with connected(RayEngine(workers=2, threads=1), jobs=2) as ray:
            yield ray


@pytest.fixture(scope="session")
def ray_address(ray_cluster: ModuleType) -> str:
    return ray_cluster.get_runtime_context().gcs_address
