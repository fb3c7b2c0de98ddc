"""Bundles of tiny random models, made once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, make_model

from export.onnx_export import export_onnx


@pytest.fixture(scope="session")
def family_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of one of `FAMILIES`, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_model(tmp_path_factory.mktemp(name) / "model", **FAMILIES[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def family_bundle(
    tmp_path_factory: pytest.TempPathFactory, family_model: Callable[[str], Path]
) -> Callable[[str, str], Path]:
    """A family's bundle in a quantization, made once."""
    made: dict[tuple[str, str], Path] = {}

    def get(name: str, quantize: Any) -> Path:
        if (name, quantize) not in made:
            out = tmp_path_factory.mktemp(f"{name}-{quantize}") / "bundle"
            export_onnx(family_model(name), out, quantize)
            made[name, quantize] = out
        return made[name, quantize]

    return get
