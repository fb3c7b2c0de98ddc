"""`cogenesis collab`: learns how device and cloud write together, from data to a report."""

from __future__ import annotations

import typer

from personalization.collab_data_command import app as data_commands
from personalization.collab_evaluate_command import evaluate
from personalization.collab_fuse_train_command import fuse_train
from personalization.collab_logprobs_command import logprobs
from personalization.collab_report_command import report
from personalization.collab_shrink_command import shrink
from personalization.collab_sketch_command import sketch
from personalization.collab_tune_command import tune

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make data, tune the device's model, train how both models are fused, and measure it all.",
)
app.add_typer(data_commands, name="data")
app.command()(logprobs)
app.command()(fuse_train)
app.command()(shrink)
app.command()(evaluate)
app.command()(tune)
app.command()(sketch)
app.command()(report)
