"""`cogenesis lamp split`: splits a questions file into parts for training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.lamp import OUTPUTS, PartOption, QuestionsOption
from cogenesis.options.output import JsonOption
from cogenesis.options.sampling import SeedOption
from personalization.lamp.splitting import SplitBy
from personalization.lamp.splitting import split as split_file
from personalization.users.parts import shares_of


def split(
    questions: QuestionsOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.", show_default=False)],
    part: PartOption,
    by: Annotated[
        SplitBy,
        typer.Option(
            help="How to split. user: no user is in two parts. time: a user's later questions are in later parts."
        ),
    ] = SplitBy.USER,
    outputs: Annotated[Path | None, OUTPUTS] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Split questions by users or by time, as LaMP does.

    The command writes NAME_questions.json for each part, and with --outputs also NAME_outputs.json.

    Example:
      cogenesis lamp split -q dev_questions.json --outputs dev_outputs.json --part train=0.8 --part dev=0.2 -o parts
    """
    counts = split_file(questions, out, shares_of(part), by, outputs=outputs, seed=seed)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "questions": counts}))
    else:
        typer.echo(", ".join(f"{count} questions in {name}" for name, count in counts.items()) + f": {out}")
