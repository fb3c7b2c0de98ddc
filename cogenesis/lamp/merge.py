"""`cogenesis lamp merge`: merges questions, gold outputs and a ranking into one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.lamp import OUTPUTS, QuestionsOption
from cogenesis.options.output import JsonOption
from personalization.errors import SettingsError
from personalization.lamp.merging import merge as merge_files


def merge(
    questions: QuestionsOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Merged file (JSON) to write.", show_default=False)],
    outputs: Annotated[Path | None, OUTPUTS] = None,
    ranking: Annotated[
        Path | None,
        typer.Option(help="Ranking from `lamp rank`. Default: keep the order of the profiles.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Merge questions with a ranking and gold outputs into one file, for evaluation and training.

    The items of each profile are put into the ranking's order.

    Example:
      cogenesis lamp merge -q dev_questions.json --outputs dev_outputs.json --ranking ranking.json -o merged.json
    """
    if outputs is None and ranking is None:
        raise SettingsError("There is nothing to merge. Give --outputs, --ranking, or both.")
    count = merge_files(questions, out, ranking=ranking, outputs=outputs)
    typer.echo(json.dumps({"out": str(out), "questions": count}) if as_json else f"{count} questions merged: {out}")
