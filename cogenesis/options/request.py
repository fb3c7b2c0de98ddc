"""Options for the request to write, and for the model that writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_runtime.errors import RequestError
from edge_runtime.generation.options import Mode

RequestOption = Annotated[
    Path,
    typer.Option(
        "--request",
        metavar="FILE",
        help="The request (JSON): an instruction, and a context with profile and history.",
        show_default=False,
    ),
]
MODE = typer.Option(
    "--mode",
    help="Which model writes. edge: the device's. cloud: the cloud's. sketch: the device's, from an "
    "outline by the cloud. fused: both together. The default of `chat` is fused with --cloud, otherwise "
    "edge.",
)
ModeOption = Annotated[Mode, MODE]
TEMPLATE_VARIABLE = typer.Option(
    "--template-variable",
    metavar="NAME=VALUE",
    help="Variable of the model's chat template, such as enable_thinking=false; may be given again. VALUE is JSON.",
    show_default=False,
)
TemplateVariablesOption = Annotated[list[str] | None, TEMPLATE_VARIABLE]


def template_variables(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Read `NAME=VALUE` texts; None if there are none.

    Raises:
        RequestError: a text has another form, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"A template variable must be NAME=VALUE, not '{text}'. Example: enable_thinking=false.")
        if name in found:
            raise RequestError(f"The template variable '{name}' comes twice.")
        try:
            found[name] = json.loads(value, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise RequestError(
                f"The value of the template variable '{name}' is not JSON: {value}. Use true, false, null, a number, "
                f"""or a text in double quotes, such as '{name}="text"'."""
            ) from None
    return found or None


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and infinities are no JSON
