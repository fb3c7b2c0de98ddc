"""`cogenesis collab report`: writes the results of a whole run into a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption


def report(
    run: Annotated[
        Path, typer.Argument(help="Directory of the run: OUT of examples/collab/run.sh.", show_default=False)
    ],
    into: Annotated[
        Path,
        typer.Option(help="Markdown document to update. The report replaces the text between its marks."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Write the results of examples/collab/run.sh into a document, as tables, with pictures beside it.

    Example:
      cogenesis collab report build/collab --into docs/results/collab.md
    """
    from personalization.collab.evaluation.run_report import write_report

    sets = write_report(run, into)
    typer.echo(json.dumps({"document": str(into), "sets": sets}) if as_json else f"{into}: {', '.join(sets)}")
