"""Defines the `cogenesis` command: mounts each group of commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys

from cogenesis.adapter import app as adapter_commands
from cogenesis.chat import chat
from cogenesis.cloud import app as cloud_commands
from cogenesis.collab import app as collab_commands
from cogenesis.demo import demo
from cogenesis.export import app as export_commands
from cogenesis.generate import generate
from cogenesis.lamp import app as lamp_commands
from cogenesis.privacy import app as privacy_commands
from cogenesis.ropg import app as ropg_commands
from cogenesis.rspg import app as rspg_commands
from cogenesis.store import app as store_commands
from cogenesis.terminal.flag_names import CommandApp
from edge_runtime.errors import CogenesisError

UNEXPECTED = 70

app = CommandApp(
    name="cogenesis",
    help="Personal text generation that is private by construction: a small model on the device sees the user's "
    "context, a large one in the cloud sees the public instruction, and the device fuses both.\n\n"
    "New here? Run [bold]cogenesis demo[/bold].",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(demo)
app.command()(generate)
app.command()(chat)
app.add_typer(export_commands, name="export")
app.add_typer(adapter_commands, name="adapter")
app.add_typer(lamp_commands, name="lamp")
app.add_typer(ropg_commands, name="ropg")
app.add_typer(rspg_commands, name="rspg")
app.add_typer(collab_commands, name="collab")
app.add_typer(cloud_commands, name="cloud")
app.add_typer(store_commands, name="store")
app.add_typer(privacy_commands, name="privacy")


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 other errors, 2 wrong usage, 3 bundle or adapter, 4 request, store or policy, 5 cloud or
    ledger, 6 the cloud was lost and the device finished the answer, 7 export, 8 `privacy audit` found private text that
    was sent, 9 personalization, 70 a bug in CoGenesis, 130 interrupted.
    """
    try:
        app()
    except CogenesisError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted.", 130)
    except Exception as error:
        if os.environ.get("COGENESIS_DEBUG"):
            raise
        kind = type(error).__name__
        _fail(f"Unexpected {kind}: {error}. Set COGENESIS_DEBUG=1 to see where, and please report it.", UNEXPECTED)


def _fail(message: str, code: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
