"""`cogenesis ropg`: trains a retriever on how much its items help a language model."""

from __future__ import annotations

from cogenesis.ropg.feedback import feedback
from cogenesis.ropg.train_kd import train_kd
from cogenesis.ropg.train_rl import train_rl
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train a retriever on how much its items help a language model (ROPG).",
)
app.command()(feedback)
app.command("train-kd")(train_kd)
app.command("train-rl")(train_rl)
