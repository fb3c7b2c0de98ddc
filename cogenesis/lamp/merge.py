"""`cogenesis lamp merge`: questions, gold outputs and a ranking become one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.users import JsonOption
from personalization.errors import SettingsError
from personalization.lamp.merging import merge as merge_files


def merge(
    questions: Annotated[Path, typer.Option("--questions", "-q", help="A questions file of LaMP.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The merged file (JSON).")],
    outputs: Annotated[
        Path | None, typer.Option(help="Gold outputs of the questions; a test split has none.", show_default=False)
    ] = None,
    ranking: Annotated[
        Path | None,
        typer.Option(help="Of their profiles, by `lamp rank`; else they stay in order.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put each profile into the ranking's order and add the gold outputs, as evaluation and training take them.

    Example:
      cogenesis lamp merge -q dev_questions.json --outputs dev_outputs.json --ranking ranking.json -o merged.json
    """
    if outputs is None and ranking is None:
        raise SettingsError("There is nothing to merge. Give --outputs, --ranking, or both.")
    count = merge_files(questions, out, ranking=ranking, outputs=outputs)
    typer.echo(json.dumps({"out": str(out), "questions": count}) if as_json else f"{count} questions merged: {out}")
