"""`cogenesis rspg export`: a trained selector becomes a graph that picks retrievers on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.export.encoder import EncoderWeights
from cogenesis.options.training import JsonOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.models.libraries import prepare_command


def export(
    selector: Annotated[Path, typer.Option(help="Directory by `rspg train`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to make; in a bundle retrieval/selector.")],
    quantize: Annotated[
        EncoderWeights, typer.Option(help="fp32: exact. int8: a quarter of the size, nearly exact.")
    ] = EncoderWeights.fp32,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export left there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a selector for devices, where `cogenesis generate --retriever auto` picks retrievers with it.

    The names of its pool must be those of the device: none, recency, bm25, and encoders as the bundle calls them.

    Example:
      cogenesis rspg export --selector selector --out my-bundle/retrieval/selector
    """
    prepare_command()
    from personalization.retrievers.selector_export import export_selector

    with progress_bar(not as_json) as progress:
        done = export_selector(selector, out, quantize.value, force=force, progress=progress)
    if as_json:
        body = {"out": str(done.path), "size_bytes": done.size, "difference": done.difference}
        typer.echo(json.dumps(body, ensure_ascii=False))
    else:
        typer.echo(f"{done.path}: {done.size / 1e6:.1f} MB, {done.difference:.1g} off torch.")
