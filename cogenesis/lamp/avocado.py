"""`cogenesis lamp avocado`: builds LaMP-6 from the licensed e-mails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption
from personalization.errors import SettingsError
from personalization.lamp.avocado import build_lamp_6

_STEM = "_questions"
_LINE_EVERY = 100


def avocado(
    mails: Annotated[
        Path, typer.Option(help="Directory of the collection's zip files, avocado-1.0.2/data/text.", show_default=False)
    ],
    lists: Annotated[
        list[Path],
        typer.Option(
            "--list",
            metavar="FILE",
            help="LaMP's list of a split's e-mails, SPLIT_questions.json; may be given again.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Build LaMP-6, subjects of e-mails, from the Avocado Research Email Collection (LDC2015T03).

    The command reads only the e-mails that the lists name from the zip files; it extracts nothing. It writes
    SPLIT_questions.json and SPLIT_outputs.json for each list.

    Example:
      cogenesis lamp avocado --mails avocado-1.0.2/data/text --list lists/train_questions.json
      --list lists/dev_questions.json -o LaMP_6
    """
    by_split: dict[str, Path] = {}
    for path in lists:
        split = path.stem.removesuffix(_STEM)
        if split in by_split:
            raise SettingsError(f"Two lists are of the split '{split}': {by_split[split]}, {path}. Rename one.")
        if (out / path.name).absolute() == path.absolute():
            raise SettingsError(f"The list would be written over: {path}. Choose another --out.")
        by_split[split] = path

    def report(split: str, done: int) -> None:
        if done % _LINE_EVERY == 0:
            typer.echo(f"{split}: {done} questions", err=True)

    built = build_lamp_6(mails, by_split, out, report=report)
    if as_json:
        body = [{"questions": str(one.questions), "outputs": str(one.outputs), "count": one.count} for one in built]
        typer.echo(json.dumps(body))
        return
    for one in built:
        typer.echo(f"{one.count} questions: {one.questions}, {one.outputs}")
