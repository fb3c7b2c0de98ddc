"""Options that all commands on the profile store share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge_runtime.errors import RequestError

DEFAULT_STORE = Path(typer.get_app_dir("cogenesis")) / "profile.db"

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        envvar="COGENESIS_STORE",
        metavar="FILE",
        help="File of the profile store; created if it is missing.",
    ),
]
FILE = typer.Option("--file", help="File with the text; - reads standard input.", show_default=False)
TITLE = typer.Option("--title", help="The task that the text was written for.", show_default=False)


@dataclass(frozen=True, kw_only=True)
class PastText:
    """The text and date of an item."""

    text: Annotated[str | None, typer.Option("--text", help="The text itself.", show_default=False)] = None
    file: Annotated[Path | None, FILE] = None
    date: Annotated[str | None, typer.Option("--date", help="Date of the text, YYYY-MM-DD.", show_default=False)] = None

    def content(self) -> str | None:
        """Return the text from the command line or the file; None if neither is given.

        Raises:
            RequestError: both are given, or the file can't be read.
        """
        return text_or_file(self.text, self.file)


def text_or_file(text: str | None, file: Path | None) -> str | None:
    """Return a text given directly or in a file; None if neither is given.

    Raises:
        RequestError: both are given, or the file can't be read.
    """
    if text is not None and file is not None:
        raise RequestError("Both a text and a --file are given. Give one of them.")
    if file is None:
        return text
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"The file is not UTF-8 text: {file}. Save it as UTF-8.") from None
    except OSError as error:
        raise RequestError(f"The file can't be read: {file} ({error.strerror}). Check its name.") from None
