"""`cogenesis lamp avocado`: builds LaMP-6 for who has the licensed e-mails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.users import JsonOption
from personalization.errors import SettingsError
from personalization.lamp.avocado import build_lamp_6

_STEM = "_questions"
_LINE_EVERY = 100


def avocado(
    mails: Annotated[
        Path, typer.Option(help="Directory of the collection's zip files, avocado-1.0.2/data/text.", show_default=False)
    ],
    questions: Annotated[
        list[Path],
        typer.Option(
            "--questions", "-q", help="LaMP's list of a split's e-mails, SPLIT_questions.json; may be given again."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write to.")],
    as_json: JsonOption = False,
) -> None:
    """Build LaMP-6, subjects of e-mails, from the Avocado Research Email Collection (LDC2015T03).

    The zip files are read where they are, and of them only the e-mails that the lists name; nothing is extracted.
    Writes SPLIT_questions.json and SPLIT_outputs.json for each list.

    Example:
      cogenesis lamp avocado --mails avocado-1.0.2/data/text -q lists/train_questions.json -q lists/dev_questions.json
      -o LaMP_6
    """
    lists: dict[str, Path] = {}
    for path in questions:
        split = path.stem.removesuffix(_STEM)
        if split in lists:
            raise SettingsError(f"Two lists are of the split '{split}': {lists[split]}, {path}. Rename one.")
        if (out / path.name).absolute() == path.absolute():
            raise SettingsError(f"The list would be written over: {path}. Choose another --out.")
        lists[split] = path

    def report(split: str, done: int) -> None:
        if done % _LINE_EVERY == 0:
            typer.echo(f"{split}: {done} questions", err=True)

    built = build_lamp_6(mails, lists, out, report=report)
    if as_json:
        body = [{"questions": str(one.questions), "outputs": str(one.outputs), "count": one.count} for one in built]
        typer.echo(json.dumps(body))
        return
    for one in built:
        typer.echo(f"{one.count} questions: {one.questions}, {one.outputs}")
