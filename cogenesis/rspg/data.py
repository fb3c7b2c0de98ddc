"""`cogenesis rspg data` and `bounds`: feedback on a pool of retrievers put together, and what selectors lie between."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from personalization.errors import SettingsError
from personalization.retrievers.selector_data import Bounds, bounds, combine, read_selection, write_selection

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def data(
    pool: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FOLDER",
            help="A retriever and its folder of feedback, by `rspg feedback`; give two or more. The first is taken "
            "where candidates are equal.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the data.")],
    metric: Annotated[
        str | None, typer.Option(help="Of the feedback, where it has several.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put the feedback on each retriever of a pool together, for training a selector or for selecting.

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


def show_bounds(
    data: Annotated[Path, typer.Argument(help="Data by `rspg data`.", show_default=False)], as_json: JsonOption = False
) -> None:
    """Show what each retriever of a pool gains alone, and what selecting gains at random and at best.

    Example:
      cogenesis rspg bounds dev.json
    """
    found = bounds(read_selection(data))
    typer.echo(json.dumps(asdict(found), ensure_ascii=False) if as_json else "\n".join(bounds_in_words(found)))


def bounds_in_words(found: Bounds) -> list[str]:
    """Lines of a report."""
    width = max(len(name) for name in (*found.retrievers, "oracle", "random"))
    rows = {**found.retrievers, "random": found.random, "oracle": found.oracle}
    return [f"{name:{width}}  {gain:.4f}{'  best alone' if name == found.best else ''}" for name, gain in rows.items()]


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
