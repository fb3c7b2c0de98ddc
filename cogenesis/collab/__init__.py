"""`cogenesis collab`: trains and measures how device and cloud write together, from data to a report."""

from __future__ import annotations

from cogenesis.collab.data import app as data_commands
from cogenesis.collab.evaluate import evaluate
from cogenesis.collab.fuse_train import fuse_train
from cogenesis.collab.logprobs import logprobs
from cogenesis.collab.report import report
from cogenesis.collab.shrink import shrink
from cogenesis.collab.sketch import sketch
from cogenesis.collab.tune import tune
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make data, tune the device's model, train the fusion of both models, and measure the results.",
)
app.add_typer(data_commands, name="data")
app.command()(logprobs)
app.command()(fuse_train)
app.command()(shrink)
app.command()(evaluate)
app.command()(tune)
app.command()(sketch)
app.command()(report)
