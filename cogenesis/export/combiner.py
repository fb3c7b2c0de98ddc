"""`cogenesis export combiner`: learned fusion for a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from export.bundle.combiner import add_combiner


def combiner_command(
    combiner: Annotated[Path, typer.Option("--combiner", help="File that `collab fuse-train` wrote.")],
    bundle: Annotated[Path, typer.Option(help="The bundle of the edge model that it was trained with.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle's combiner.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Put a trained combiner into a bundle, for [bold]generate --fusion learned[/bold].

    Example:
      cogenesis export combiner --combiner fusion/combiner.safetensors --bundle my-bundle
    """
    added = add_combiner(combiner, bundle, replace_existing=force)
    if as_json:
        typer.echo(json.dumps({"path": str(added.path), "size_bytes": added.size}))
    else:
        typer.echo(f"{added.path}: {added.size:,} bytes. Use it with --fusion learned, and --schedule learned.")
