"""`cogenesis export encoder`: text encoders for searching past texts on a device."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.terminal.progress_bar import progress_bar
from export.errors import ExportError
from export.extras import require_extra


class EncoderWeights(enum.StrEnum):
    """Choices of `--quantize`."""

    fp32 = "fp32"
    int8 = "int8"


def encoder_command(
    model: Annotated[
        Path, typer.Option("--model", "-m", help="Hugging Face directory of a BERT, RoBERTa or DistilBERT.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to make.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Put it into this bundle instead, where [bold]generate[/bold] finds it.")
    ] = None,
    name: Annotated[str, typer.Option(help="What it is called in the bundle.")] = "dense",
    quantize: Annotated[
        EncoderWeights, typer.Option(help="fp32: exact. int8: a quarter of the size, nearly exact.")
    ] = EncoderWeights.fp32,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export left there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Make a text encoder for the device: Contriever, MiniLM, or a retriever that [bold]ropg[/bold] trained.

    A text's vector is the mean of the encoder's last hidden states, as in ranking offline.

    Examples:
      cogenesis export encoder --model models/contriever --out encoders/contriever

      cogenesis export encoder --model models/contriever --bundle bundles/smollm2 --name contriever --quantize int8
    """
    from edge_runtime.bundle.reader import open_bundle
    from edge_runtime.retrieval.kit import retriever_directory

    require_extra()
    from export.encoders.export import export_encoder

    if (out is None) == (bundle is None):
        raise ExportError("Say where the encoder goes: with --out DIR or with --bundle DIR.")
    target = out
    if bundle is not None:
        target = retriever_directory(open_bundle(bundle, verify=False).root, name)
    assert target is not None
    with progress_bar(not as_json) as report:
        done = export_encoder(model, target, quantize.value, force=force, progress=report)
    card = done.card
    if as_json:
        body = {
            "directory": str(done.path),
            "model": card.model,
            "dimension": card.dimension,
            "max_tokens": card.max_tokens,
            "quantization": card.quantization,
            "difference": done.difference,
            "size_bytes": done.size,
        }
        typer.echo(json.dumps(body))
        return
    typer.echo(
        f"{done.path}: {card.model}, {card.quantization}, {done.size / 1e6:.1f} MB, vectors of {card.dimension}, texts "
        f"of up to {card.max_tokens} tokens, {done.difference:.1g} off torch."
    )
