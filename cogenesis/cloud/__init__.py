"""`cogenesis cloud`: serves a large model to devices, or shows which model a cloud serves."""

from __future__ import annotations

from cogenesis.cloud.info import info
from cogenesis.cloud.serve import serve
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(help="Serve a large model to devices, or show which model a cloud serves.", no_args_is_help=True)
app.command()(serve)
app.command()(info)
