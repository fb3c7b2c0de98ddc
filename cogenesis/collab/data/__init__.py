"""`cogenesis collab data`: imports, generates, counts and splits records of writing tasks."""

from __future__ import annotations

from cogenesis.collab.data.generate import generate
from cogenesis.collab.data.import_ import import_records
from cogenesis.collab.data.split import split
from cogenesis.collab.data.stats import stats
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Import, generate, count and divide writing tasks with their users' context.",
)
app.command("import")(import_records)
app.command()(stats)
app.command()(split)
app.command()(generate)
