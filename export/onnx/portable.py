"""Exports architectures that our graph writer does not cover, with torch's exporter, to a graph of kind "portable"."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import BACKEND_ONNX, GRAPH_PORTABLE, DecoderSpec, Quantization
from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import MissingExtraError
from export.bundle.writer import BundleParts, golden_name, write_bundle
from export.errors import SourceError, UnsupportedModelError, UnsupportedQuantizationError
from export.onnx.optimum_exporter import EXTRA, export_with_optimum, optimum_is_installed
from export.onnx.portable_check import check_exportable, compare_with_torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.manifest import Manifest, SourceCheck
    from edge_runtime.bundle.reader import Bundle
    from export.model.hf_source import HFDirectory
    from export.progress import Progress

_SCHEMES = {
    "fp32": "float32, nothing quantized; portable graph by {exporter}",
    "int8": "8-bit weights, one scale a column (onnxruntime dynamic quantization); portable graph by {exporter}",
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
    """Export with torch, or else with optimum, compare with torch, then quantize with onnxruntime for "int8".

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
        UnsupportedModelError: no exporter supports the architecture, or `context_length` exceeds the model's.
        UnsupportedQuantizationError: the scheme is not "fp32" or "int8".
        MissingExtraError: torch can't export the model, and optimum, which may, is not installed.
        ConformanceError: the graph differs from torch.
        WriteError: the bundle can't be written.
    """
    path, family = model.path, model.family
    check_exportable(model)
    if scheme not in _SCHEMES:
        raise UnsupportedQuantizationError(
            f"Models of type '{family}' are exported to a portable graph, which has no '{scheme}': {path}. "
            f"Use {' or '.join(_SCHEMES)}."
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
        checker = functools.partial(_check, model, scheme)

    def write(directory: Path) -> DecoderSpec:
        progress("Exporting with torch", 0, 1)
        exporter = _export(model, directory, parts.context_length)
        progress("Exporting with torch", 1, 1)
        if scheme == "int8":
            progress("Quantizing", 0, 1)
            _quantize(directory)
            progress("Quantizing", 1, 1)
        return _decoder_spec(directory / "model.onnx", Quantization(scheme, _SCHEMES[scheme].format(exporter=exporter)))

    return write_bundle(out, parts, BACKEND_ONNX, write, check=checker, replace_existing=force, progress=progress)


def _check(model: HFDirectory, scheme: str, bundle: Bundle, spec: DecoderSpec) -> SourceCheck:
    """Compare the finished decoder with the model on a text; `compare_with_torch` went past its windows."""
    from export.check.check import check_model
    from export.check.reference import LoadedReference
    from export.check.source import sample_tokens
    from export.onnx.torch_exporter import load_decoder

    token_ids = sample_tokens(model.tokenizer(), bundle.manifest.context_length)
    reference = LoadedReference(load_decoder(model.path))
    return check_model(reference, open_decoder(bundle, spec.backend), token_ids, scheme, None, model.path)


def _context_length(model: HFDirectory, wanted: int | None) -> int:
    config = model.config
    longest = next((int(config[name]) for name in _LENGTH_FIELDS if config.get(name)), _UNBOUNDED_LENGTH)
    scaled = config.get("rope_parameters") or config.get("rope_scaling") or {}
    original = scaled.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if "longrope" in (scaled.get("rope_type"), scaled.get("type")) and original:
        # A longer text has other frequencies from its first token on, which a cache of a shorter one can't follow.
        longest = min(longest, int(original))
    if wanted is not None and not 1 <= wanted <= longest:
        raise UnsupportedModelError(
            f"`context_length` must be in 1 .. {longest:,}, as the model was made for, not {wanted:,}: {model.path}."
        )
    return wanted or longest


def _export(model: HFDirectory, directory: Path, context_length: int) -> str:
    """Write `model.onnx` with the first exporter that can, compare it with torch, and return the exporter's name."""
    from export.onnx.torch_exporter import export_with_torch, load_decoder

    network = load_decoder(model.path)
    exporter = "torch"
    try:
        export_with_torch(network, directory / "model.onnx")
    except Exception as error:  # torch does not say what it raises
        _raise_if_disk_full(error, directory)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        for file in directory.glob("model.onnx*"):
            file.unlink()
        exporter = "optimum"
        _export_otherwise(model, directory, reason)
    compare_with_torch(network, directory / "model.onnx", model.config, context_length)
    return exporter


def _export_otherwise(model: HFDirectory, directory: Path, reason: str) -> None:
    refusal = f"torch's ONNX exporter can't export this model of type '{model.family}': {model.path} ({reason})."
    if not optimum_is_installed():
        raise MissingExtraError(
            f"{refusal} optimum may, but it is not installed. Run `pip install 'cogenesis-edge[{EXTRA}]'`, which "
            "installs transformers 4."
        )
    try:
        export_with_optimum(model, directory)
    except Exception as error:  # optimum does not say what it raises
        _raise_if_disk_full(error, directory)
        other = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(f"{refusal} optimum can't either ({other}).") from None


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
