"""Options for the form of a command's output, and for existing results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Start over: replace the results of an earlier run, whatever its settings.")
]


def say(body: Mapping[str, Any], words: str, as_json: bool) -> None:
    """Print a command's result: `body` as one JSON object, or `words`."""
    typer.echo(json.dumps(body, ensure_ascii=False) if as_json else words)
