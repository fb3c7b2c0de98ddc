"""Options for the data and the directory of a selector of retrievers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SelectionOption = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Questions with each retriever's answers, from `rspg data`.",
        show_default=False,
    ),
]
SelectorOption = Annotated[
    Path,
    typer.Option("--selector", metavar="DIR", help="Directory of a selector from `rspg train`.", show_default=False),
]
