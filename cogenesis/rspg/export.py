"""`cogenesis rspg export`: exports a trained selector as a graph that selects retrievers on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.models import Scheme, SchemeOption, encoder_scheme
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.rspg.options import SelectorOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.models.libraries import prepare_command


def export(
    selector: SelectorOption,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory to write; in a bundle: retrieval/selector.", show_default=False),
    ],
    quantize: SchemeOption = Scheme.fp32,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a selector for devices, where `cogenesis generate --retriever auto` uses it.

    Its pool must use the device's names: none, recency, bm25, and the names of the bundle's encoders.

    Example:
      cogenesis rspg export --selector selector --out my-bundle/retrieval/selector
    """
    scheme = encoder_scheme(quantize)
    prepare_command()
    from personalization.retrievers.selector_export import export_selector

    with progress_bar(not as_json) as progress:
        done = export_selector(selector, out, scheme, force=force, progress=progress)
    if as_json:
        body = {"out": str(done.path), "size_bytes": done.size, "difference": done.difference}
        typer.echo(json.dumps(body, ensure_ascii=False))
    else:
        typer.echo(f"{done.path}: {done.size / 1e6:.1f} MB, scores within {done.difference:.1g} of torch's.")
