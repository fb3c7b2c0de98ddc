"""`cogenesis rspg`: selects, for each question, the retriever in a pool that helps the model most."""

from __future__ import annotations

from cogenesis.rspg.bounds import bounds
from cogenesis.rspg.data import data
from cogenesis.rspg.export import export
from cogenesis.rspg.feedback import feedback
from cogenesis.rspg.predict import predict
from cogenesis.rspg.train import train
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Select, for each question, the retriever in a pool that helps the language model most (RSPG).",
)
app.command()(feedback)
app.command()(data)
app.command()(bounds)
app.command()(train)
app.command()(predict)
app.command()(export)
