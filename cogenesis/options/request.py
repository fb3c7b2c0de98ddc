"""Options for the request to write, and for the model that writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
