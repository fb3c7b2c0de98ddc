"""`cogenesis lamp split`: parts of a questions file for training and judging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.users import JsonOption
from personalization.lamp.splitting import SplitBy
from personalization.lamp.splitting import split as split_file
from personalization.users.parts import shares_of


def split(
    questions: Annotated[Path, typer.Option("--questions", "-q", help="A questions file of LaMP, merged or not.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write to.")],
    part: Annotated[
        list[str],
        typer.Option(metavar="NAME=SHARE", help="A part and its share, earliest first; give two or more."),
    ],
    by: Annotated[
        SplitBy, typer.Option(help="user: parts share no user. time: a user's later questions come into later parts.")
    ] = SplitBy.USER,
    outputs: Annotated[Path | None, typer.Option(help="Gold outputs of the questions.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of the users' order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Split questions by users or by time, as LaMP does.

    Writes NAME_questions.json of each part, and NAME_outputs.json where --outputs are given.

    Example:
      cogenesis lamp split -q dev_questions.json --outputs dev_outputs.json --part train=0.8 --part dev=0.2 -o parts
    """
    counts = split_file(questions, out, shares_of(part), by, outputs=outputs, seed=seed)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "questions": counts}))
    else:
        typer.echo(", ".join(f"{count} questions in {name}" for name, count in counts.items()) + f": {out}")
