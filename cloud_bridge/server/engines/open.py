"""Loads the selected engine and imports only the packages that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_bridge.server.engines.model_files import find_model
from cloud_bridge.server.errors import ServeError
from edge_runtime.machine.threads import usable_cores

if TYPE_CHECKING:
    from cloud_bridge.server.engines.protocol import Engine


class EngineName(StrEnum):
    """The engines that can run the cloud's model."""

    TRANSFORMERS = "transformers"
    ONNX = "onnx"


def check_choice(engine: EngineName, model: str | None, bundle: Path | None) -> None:
    """Check the arguments before heavy packages are imported.

    Raises:
        ServeError: the engine's model or bundle was not given or does not exist.
    """
    if engine is EngineName.ONNX:
        if bundle is None or model is not None:
            raise ServeError("The engine onnx serves a bundle. Give `bundle`, and no `model`.")
        if not (bundle / "manifest.json").is_file():
            raise ServeError(
                f"There is no bundle here: {bundle} (no manifest.json). Make one with `cogenesis export onnx`."
            )
        return
    if model is None or bundle is not None:
        raise ServeError("The engine transformers serves a model. Give `model`, and no `bundle`.")
    find_model(model)


def load(
    engine: EngineName,
    model: str | None,
    bundle: Path | None,
    threads: int | None,
    template_variables: Mapping[str, Any] | None = None,
) -> Engine[Any]:
    """Load the engine; takes seconds to minutes.

    Args:
        engine: which engine.
        model: the model of the engine transformers.
        bundle: the bundle of the engine onnx.
        threads: threads per matrix product; None uses all usable cores.
        template_variables: variables of the chat template by name.

    Raises:
        ServeError: the engine's packages are not installed, or its model can't be loaded.
        BundleError: the bundle can't be used.
        RequestError: the chat template does not use a variable.
    """
    check_choice(engine, model, bundle)
    if engine is EngineName.ONNX:
        from cloud_bridge.server.engines.onnx_engine import load_onnx_engine

        return load_onnx_engine(str(bundle), threads, template_variables)
    return _load_transformers(str(model), threads, template_variables)


def _load_transformers(model: str, threads: int | None, variables: Mapping[str, Any] | None) -> Engine[Any]:
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
    # torch's own default ignores a container's CPU quota.
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
    return load_engine(model, variables)
