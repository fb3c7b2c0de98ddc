"""What tests of learning share: tiny models, and a real Ray cluster started by the product's own code, once a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from personal_data import make_t5
from tiny_models import make_model

from personalization.base import Base
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


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random Llama."""
    return make_model(tmp_path_factory.mktemp("llama") / "tiny-llama", model_type="llama")


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random T5."""
    return make_t5(tmp_path_factory.mktemp("t5") / "tiny-t5")


@pytest.fixture(scope="session")
def llama_base(llama: Path) -> Base:
    """A base that tests train on; whoever does leaves it as it was."""
    return Base(llama, threads=1)


@pytest.fixture(scope="session")
def t5_base(t5: Path) -> Base:
    return Base(t5, threads=1)
