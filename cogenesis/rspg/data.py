"""`cogenesis rspg data`: combines the feedback on a pool of retrievers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.lamp import MetricOption
from cogenesis.options.output import JsonOption
from personalization.errors import SettingsError
from personalization.retrievers.selector_data import combine, write_selection


def data(
    pool: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FOLDER",
            help="Retriever and the folder of its feedback from `rspg feedback`; give two or more. If "
            "candidates are equal, the first wins.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the data to write.", show_default=False)],
    metric: MetricOption = None,
    as_json: JsonOption = False,
) -> None:
    """Combine the feedback on the retrievers of a pool into one file, for `rspg train` and `rspg predict`.

    Example:
      cogenesis rspg data --pool none=feedback/none --pool bm25=feedback/bm25 --pool kd=feedback/kd -o train.json
    """
    selection = combine(_pool(pool), metric)
    write_selection(selection, out)
    if as_json:
        body = {
            "out": str(out),
            "questions": len(selection.questions),
            "metric": selection.metric,
            "retrievers": selection.retrievers,
        }
        typer.echo(json.dumps(body, ensure_ascii=False))
    else:
        names = ", ".join(selection.retrievers)
        typer.echo(f"{len(selection.questions)} questions with {selection.metric} of {names}: {out}")


def _pool(texts: list[str]) -> dict[str, Path]:
    pool: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not (name and separator and folder):
            raise SettingsError(f"--pool must be NAME=FOLDER, such as bm25=feedback/bm25, not {text}.")
        if name in pool:
            raise SettingsError(f"There are two retrievers named {name} in the pool. Name each differently.")
        pool[name] = Path(folder)
    return pool
