"""Exports architectures that our graph writer does not cover, through optimum: a graph of kind "portable"."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import BACKEND_ONNX, GRAPH_PORTABLE, DecoderSpec, Quantization
from export.bundle.writer import BundleParts, golden_name, write_bundle
from export.errors import SourceError, UnsupportedModelError, UnsupportedQuantizationError
from export.model.architecture import LLAMA_FAMILY

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from export.model.hf_source import HFDirectory
    from export.progress import Progress

_TASK = "text-generation-with-past"
_DESCRIPTIONS = {
    "fp32": "float32, nothing quantized; portable graph by optimum",
    "int8": "8-bit weights, one scale a column (onnxruntime dynamic quantization); portable graph by optimum",
}
# What architectures call the number of positions that they were made for.
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_UNBOUNDED_LENGTH = 2048  # for models without learnt positions (ALiBi), which name no number
_LARGE = 1 << 30  # beyond this, quantized weights go into a file of their own; protobuf ends at 2 GiB


def export_portable(
    model: HFDirectory, out: Path, scheme: str, *, context_length: int | None, force: bool, progress: Progress
) -> Manifest:
    """Export with optimum, then quantize with onnxruntime if asked for.

    Args:
        model: its directory.
        out: the bundle's directory.
        scheme: "fp32" or "int8".
        context_length: positions to serve; None: all that the model has.
        force: replace a bundle that is already there.
        progress: see `export.progress`.

    Raises:
        UnsupportedModelError: optimum doesn't know the architecture either, or the length is beyond the model's.
        UnsupportedQuantizationError: another scheme.
        WriteError: the bundle can't be written.
    """
    path, family = model.path, model.family
    _check_supported(model)
    if scheme not in _DESCRIPTIONS:
        raise UnsupportedQuantizationError(
            f"Models of type '{family}' are exported through optimum, which has no '{scheme}': {path}. "
            f"Use {' or '.join(_DESCRIPTIONS)}."
        )
    parts = BundleParts(
        architecture=family,
        provenance=model.provenance(),
        tokenizer=model.tokenizer(),
        context_length=_context_length(model, context_length),
        vocab_size=int(model.config.get("vocab_size", 0)),
    )
    progress("Reading the model", 1, 1)

    def write(directory: Path) -> DecoderSpec:
        progress("Exporting with optimum", 0, 1)
        _export(path, directory)
        progress("Exporting with optimum", 1, 1)
        if scheme == "int8":
            progress("Quantizing", 0, 1)
            _quantize(directory)
            progress("Quantizing", 1, 1)
        return _decoder_spec(directory / "model.onnx", Quantization(scheme, _DESCRIPTIONS[scheme]))

    return write_bundle(out, parts, BACKEND_ONNX, write, replace_existing=force, progress=progress)


def _check_supported(model: HFDirectory) -> None:
    # Importing the configurations registers them.
    import optimum.exporters.onnx.model_configs  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    family = model.family
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(family, "onnx", library_name="transformers")
    except KeyError:
        tasks = {}
    if _TASK not in tasks:
        raise UnsupportedModelError(
            f"Models of type '{family}' can't be exported: {model.path}. Our graph covers {', '.join(LLAMA_FAMILY)}; "
            "optimum doesn't know this one as a text generator either."
        )
    if model.config.get("quantization_config"):
        raise UnsupportedModelError(f"The weights are already quantized: {model.path}. Use the original model.")


def _context_length(model: HFDirectory, wanted: int | None) -> int:
    config = model.config
    longest = next((int(config[name]) for name in _LENGTH_FIELDS if config.get(name)), _UNBOUNDED_LENGTH)
    if wanted is not None and not 1 <= wanted <= longest:
        raise UnsupportedModelError(
            f"The context length can't be {wanted:,}: the model was made for 1 to {longest:,} tokens ({model.path})."
        )
    return wanted or longest


def _export(path: Path, directory: Path) -> None:
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory(prefix=".optimum-", dir=directory) as work:
        try:
            # Validation would load the model once more; the bundle's own check follows.
            main_export(
                str(path), work, task=_TASK, do_validation=False, local_files_only=True, library_name="transformers"
            )
        except Exception as error:
            _raise_if_disk_full(error, directory)
            raise UnsupportedModelError(
                f"optimum could not export this model: {path} ({' '.join(str(error).split())[:200]})."
            ) from None
        produced = [file for file in Path(work).iterdir() if file.name.startswith("model.onnx")]
        if not any(file.name == "model.onnx" for file in produced):
            raise UnsupportedModelError(f"optimum wrote no single decoder graph for this model: {path}.")
        for file in produced:
            file.rename(directory / file.name)


def _quantize(directory: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = directory / "model.onnx"
    size = sum(file.stat().st_size for file in directory.iterdir())
    with tempfile.TemporaryDirectory(prefix=".quantized-", dir=directory) as work:
        try:
            quantize_dynamic(
                source,
                Path(work) / "model.onnx",
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=size > _LARGE,
                extra_options={"MatMulConstBOnly": True},
            )
        except Exception as error:
            _raise_if_disk_full(error, directory)
            raise SourceError(
                f"onnxruntime could not quantize the graph ({' '.join(str(error).split())[:200]}). Use --quantize fp32."
            ) from None
        for file in directory.glob("model.onnx*"):
            file.unlink()
        for file in Path(work).iterdir():
            file.rename(directory / file.name)


def _decoder_spec(graph: Path, quantization: Quantization) -> DecoderSpec:
    """Read the cache's shape from the graph itself, which knows it better than each architecture's configuration."""
    import onnx

    inputs = {value.name: value for value in onnx.load(graph, load_external_data=False).graph.input}
    layers = sum(name.startswith("past_key_values.") and name.endswith(".key") for name in inputs)
    caches = [inputs.get(f"past_key_values.{layer}.{part}") for layer in range(layers) for part in ("key", "value")]
    shapes = {
        tuple(dimension.dim_value for dimension in cache.type.tensor_type.shape.dim) if cache is not None else ()
        for cache in caches
    }
    shape = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) != 4 or not shape[1] or not shape[3]:
        raise UnsupportedModelError("The model's cache is not of the usual form (batch, heads, length, width).")
    return DecoderSpec(
        f"{BACKEND_ONNX}/{graph.name}",
        GRAPH_PORTABLE,
        layers,
        shape[1],
        shape[3],
        (),
        quantization,
        golden_name(BACKEND_ONNX),
    )


def _raise_if_disk_full(error: Exception, directory: Path) -> None:
    """Libraries report a full disk as almost anything."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    if shutil.disk_usage(directory).free < 1 << 20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
