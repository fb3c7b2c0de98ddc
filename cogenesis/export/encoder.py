"""`cogenesis export encoder`: makes text encoders for searching past texts on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.models import Scheme, SchemeOption, encoder_scheme
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.terminal.progress_bar import progress_bar
from export.errors import ExportError
from export.extras import require_extra


def encoder(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="DIR",
            help="Hugging Face directory of a BERT, RoBERTa or DistilBERT model.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to write.", show_default=False)] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            "-b",
            metavar="DIR",
            help="Put the encoder into this bundle instead, where [bold]generate[/bold] finds it.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the encoder in the bundle.")] = "dense",
    quantize: SchemeOption = Scheme.fp32,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a text encoder for the device, from Contriever, MiniLM or a retriever that [bold]ropg[/bold] trained.

    A text's vector is the mean of the encoder's last hidden states, as in `lamp rank`.

    Examples:
      cogenesis export encoder --model models/contriever --out encoders/contriever

      cogenesis export encoder --model models/contriever --bundle bundles/smollm2 --name contriever --quantize int8
    """
    from edge_runtime.bundle.reader import open_bundle
    from edge_runtime.retrieval.kit import retriever_directory

    scheme = encoder_scheme(quantize)
    require_extra()
    from export.encoders.export import export_encoder

    if (out is None) == (bundle is None):
        raise ExportError("Say where the encoder goes: with --out DIR or with --bundle DIR.")
    target = out
    if bundle is not None:
        target = retriever_directory(open_bundle(bundle, verify=False).root, name)
    assert target is not None
    with progress_bar(not as_json) as report:
        done = export_encoder(Path(model), target, scheme, force=force, progress=report)
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
        f"{done.path}: {card.model}, {card.quantization}, {done.size / 1e6:.1f} MB, {card.dimension} dimensions, texts "
        f"of up to {card.max_tokens} tokens, vectors within {done.difference:.1g} of torch's."
    )
