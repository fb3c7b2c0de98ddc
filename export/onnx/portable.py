"""Exports architectures that our graph writer does not cover, with optimum, to a graph of kind "portable"."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import BACKEND_ONNX, GRAPH_PORTABLE, DecoderSpec, Quantization
from export.bundle.writer import BundleParts, golden_name, write_bundle
from export.errors import SourceError, UnsupportedModelError, UnsupportedQuantizationError
from export.model.architecture import LLAMA_FAMILY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.decoders.protocol import Decoder
    from export.model.hf_source import HFDirectory
    from export.progress import Progress

_TASK = "text-generation-with-past"
_DESCRIPTIONS = {
    "fp32": "float32, nothing quantized; portable graph by optimum",
    "int8": "8-bit weights, one scale a column (onnxruntime dynamic quantization); portable graph by optimum",
}
# Architectures' names for the maximum number of positions.
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_UNBOUNDED_LENGTH = 2048  # for models without learned positions (ALiBi), which have no maximum
_VARYING_ROPES = ("longrope", "su", "dynamic")
_LARGE = 1 << 30  # above this, quantized weights go into a separate file; protobuf's limit is 2 GiB


def export_portable(
    model: HFDirectory,
    out: Path,
    scheme: str,
    *,
    context_length: int | None,
    check: bool,
    template_variables: Mapping[str, Any] | None,
    force: bool,
    progress: Progress,
) -> Manifest:
    """Export with optimum, then quantize with onnxruntime for "int8".

    Args:
        model: its directory.
        out: the bundle's directory.
        scheme: "fp32" or "int8".
        context_length: maximum number of positions; None uses the model's own maximum.
        check: compare the decoder with the source model as transformers computes it.
        template_variables: variables of the chat template; see `export_onnx`.
        force: replace an existing bundle.
        progress: see `export.progress`.

    Raises:
        WrongExportError: the decoder does not compute what transformers computes.
        UnsupportedModelError: optimum does not support the architecture, or `context_length` exceeds the model's.
        UnsupportedQuantizationError: the scheme is not "fp32" or "int8".
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
        template_variables=template_variables,
    )
    parts.check_template_variables()
    progress("Reading the model", 1, 1)
    checker = None
    if check:
        from export.check.checker import checker_of

        checker = checker_of(model, scheme, _opened_twin, None, progress)

    def write(directory: Path) -> DecoderSpec:
        progress("Exporting with optimum", 0, 1)
        _export(path, directory)
        progress("Exporting with optimum", 1, 1)
        if scheme == "int8":
            progress("Quantizing", 0, 1)
            _quantize(directory)
            progress("Quantizing", 1, 1)
        return _decoder_spec(directory / "model.onnx", Quantization(scheme, _DESCRIPTIONS[scheme]))

    return write_bundle(out, parts, BACKEND_ONNX, write, check=checker, replace_existing=force, progress=progress)


@contextmanager
def _opened_twin(root: Path, config: Mapping[str, Any]) -> Iterator[tuple[Decoder, None, int]]:
    """Export the small model in a directory, and open the result; see `export.check.check.OpenTwin`."""
    from export.onnx.trial import opened_bundle

    with tempfile.TemporaryDirectory(prefix="cogenesis-check-") as directory:
        decoder_files = Path(directory) / BACKEND_ONNX
        decoder_files.mkdir()
        _export(root, decoder_files)
        spec = _decoder_spec(decoder_files / "model.onnx", Quantization("fp32", ""))
        longest = _longest(config)
        decoder = opened_bundle(Path(directory), spec, longest, int(config["vocab_size"]))
        yield decoder, None, longest


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
            "optimum does not know this type as a text generator either."
        )
    scaling = model.config.get("rope_scaling") or model.config.get("rope_parameters") or {}
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in _VARYING_ROPES:
        raise UnsupportedModelError(
            f"Models of type '{family}' with rotary positions that depend on the text's length can't be exported: "
            f"{model.path}. optimum would fix those of short texts."
        )
    if model.config.get("quantization_config"):
        raise UnsupportedModelError(f"The weights are already quantized: {model.path}. Use the original model.")


def _context_length(model: HFDirectory, wanted: int | None) -> int:
    longest = _longest(model.config)
    if wanted is not None and not 1 <= wanted <= longest:
        raise UnsupportedModelError(
            f"`context_length` must be in 1 .. {longest:,}, as the model was made for, not {wanted:,}: {model.path}."
        )
    return wanted or longest


def _longest(config: Mapping[str, Any]) -> int:
    return next((int(config[name]) for name in _LENGTH_FIELDS if config.get(name)), _UNBOUNDED_LENGTH)


def _export(path: Path, directory: Path) -> None:
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory(prefix=".optimum-", dir=directory) as work:
        try:
            # Validation would load the model again; the bundle is checked later anyway.
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
                f"onnxruntime could not quantize the graph ({' '.join(str(error).split())[:200]}). Use `quantize` fp32."
            ) from None
        for file in directory.glob("model.onnx*"):
            file.unlink()
        for file in Path(work).iterdir():
            file.rename(directory / file.name)


def _decoder_spec(graph: Path, quantization: Quantization) -> DecoderSpec:
    """Describe the decoder; its cache shape comes from the graph, which is more reliable than the configuration."""
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
    """Raise an OSError if the disk is full, because libraries report a full disk in many ways."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    if shutil.disk_usage(directory).free < 1 << 20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
