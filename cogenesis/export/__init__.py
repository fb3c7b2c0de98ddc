"""`cogenesis export`: makes bundles from models and checks them."""

from __future__ import annotations

from cogenesis.export.adapter import adapter
from cogenesis.export.adapters import adapters
from cogenesis.export.combiner import combiner
from cogenesis.export.encoder import encoder
from cogenesis.export.executorch import executorch
from cogenesis.export.hf import hf
from cogenesis.export.onnx import onnx
from cogenesis.export.verify import verify
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make bundles for devices from models, and check them.\n\n"
    "A [bold]bundle[/bold] is the directory that ships to a phone or PC: graph, weights, tokenizer, manifest.",
)
app.command()(onnx)
app.command()(executorch)
app.command()(verify)
app.command()(hf)
app.command()(encoder)
app.command()(adapter)
app.command()(adapters)
app.command()(combiner)
