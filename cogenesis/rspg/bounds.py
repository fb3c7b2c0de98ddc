"""`cogenesis rspg bounds`: shows the lower and upper bounds on a selector's gain."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption
from cogenesis.rspg.report import bounds_in_words
from personalization.retrievers.selector_data import bounds as bounds_of
from personalization.retrievers.selector_data import read_selection


def bounds(
    data: Annotated[Path, typer.Argument(help="Data file from `rspg data`.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show the gain of each retriever in a pool, of random selection, and of perfect selection.

    Example:
      cogenesis rspg bounds dev.json
    """
    found = bounds_of(read_selection(data))
    typer.echo(json.dumps(asdict(found), ensure_ascii=False) if as_json else "\n".join(bounds_in_words(found)))
