"""Loads the engine that --engine names, and only what it needs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_bridge.server.engines.model_files import find_model
from cloud_bridge.server.errors import ServeError

if TYPE_CHECKING:
    from cloud_bridge.server.engines.protocol import Engine


class EngineName(StrEnum):
    """What computes the cloud's model."""

    TRANSFORMERS = "transformers"
    ONNX = "onnx"


def check_choice(engine: EngineName, model: str | None, bundle: Path | None) -> None:
    """Check what can be checked before anything heavy is imported.

    Raises:
        ServeError: what the engine serves was not given, or is not there.
    """
    if engine is EngineName.ONNX:
        if bundle is None or model is not None:
            raise ServeError("The engine onnx serves a bundle: give --bundle DIR, and no --model.")
        if not (bundle / "manifest.json").is_file():
            raise ServeError(
                f"No bundle is there: {bundle} has no manifest.json. Make one with `cogenesis export onnx`."
            )
        return
    if model is None or bundle is not None:
        raise ServeError("The engine transformers serves a model: give --model, and no --bundle.")
    find_model(model)


def load(engine: EngineName, model: str | None, bundle: Path | None, threads: int | None) -> Engine[Any]:
    """Load the engine; takes seconds to minutes.

    Raises:
        ServeError: its packages are not installed, or what it serves can't be loaded.
        BundleError: the bundle can't be used.
    """
    check_choice(engine, model, bundle)
    if engine is EngineName.ONNX:
        from cloud_bridge.server.engines.onnx_engine import load_onnx_engine

        return load_onnx_engine(str(bundle), threads)
    return _load_transformers(str(model), threads)


def _load_transformers(model: str, threads: int | None) -> Engine[Any]:
    try:
        import torch
        import transformers

        from cloud_bridge.server.engines.transformers_engine import load_engine
    except ImportError as error:
        raise ServeError(
            f"Serving a model needs more packages ({error.name} is missing): install cogenesis-edge[cloud]."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    return load_engine(model)
