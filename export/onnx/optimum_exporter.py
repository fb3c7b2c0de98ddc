"""Exports a decoder with optimum, for architectures that torch's exporter can't export."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import UnsupportedModelError

if TYPE_CHECKING:
    from export.model.hf_source import HFDirectory

EXTRA = "optimum"
_TASK = "text-generation-with-past"


def optimum_is_installed() -> bool:
    """Whether the extra is installed, whose exporter needs transformers 4."""
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:
        return False


def export_with_optimum(model: HFDirectory, directory: Path) -> None:
    """Write `model.onnx`, and perhaps files with its weights.

    Raises:
        UnsupportedModelError: optimum does not know the architecture as a text generator.
        Exception: optimum can't export the model; it does not say what it raises.
    """
    # Importing the configurations registers them.
    import optimum.exporters.onnx.model_configs  # noqa: F401
    from optimum.exporters.onnx import main_export
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(model.family, "onnx", library_name="transformers")
    except KeyError:
        tasks = {}
    if _TASK not in tasks:
        raise UnsupportedModelError(
            f"optimum does not know models of type '{model.family}' as text generators: {model.path}."
        )
    with tempfile.TemporaryDirectory(prefix=".optimum-", dir=directory) as work:
        # Validation would load the model again; the graph is compared with torch anyway.
        main_export(
            str(model.path), work, task=_TASK, do_validation=False, local_files_only=True, library_name="transformers"
        )
        produced = [file for file in Path(work).iterdir() if file.name.startswith("model.onnx")]
        if not any(file.name == "model.onnx" for file in produced):
            raise UnsupportedModelError(f"optimum wrote no single decoder graph for this model: {model.path}.")
        for file in produced:
            file.rename(directory / file.name)
