"""`cogenesis export combiner`: adds a trained combiner to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import ForceOption, JsonOption
from export.bundle.combiner import add_combiner


def combiner(
    combiner: Annotated[
        Path,
        typer.Option("--combiner", metavar="FILE", help="Combiner file from `collab fuse-train`.", show_default=False),
    ],
    bundle: Annotated[
        Path,
        typer.Option(
            "--bundle",
            "-b",
            metavar="DIR",
            help="Bundle of the edge model that the combiner was trained with.",
            show_default=False,
        ),
    ],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a trained combiner to a bundle, for [bold]generate --fusion learned[/bold].

    Example:
      cogenesis export combiner --combiner fusion/combiner.safetensors --bundle my-bundle
    """
    added = add_combiner(combiner, bundle, replace_existing=force)
    if as_json:
        typer.echo(json.dumps({"path": str(added.path), "size_bytes": added.size}))
    else:
        typer.echo(f"{added.path}: {added.size:,} bytes. Use it with --fusion learned and --schedule learned.")
