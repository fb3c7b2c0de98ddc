"""Options that all commands on the profile store share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StoreFile = Annotated[
    Path, typer.Option("--store", envvar="COGENESIS_STORE", metavar="FILE", help="The store's file; made if missing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_STORE = Path(typer.get_app_dir("cogenesis")) / "profile.db"
