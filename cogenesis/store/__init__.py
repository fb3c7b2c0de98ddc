"""`cogenesis store`: shows, changes and searches the profile and past texts on this device."""

from __future__ import annotations

from cogenesis.store.add import add
from cogenesis.store.embed import embed
from cogenesis.store.import_ import import_file
from cogenesis.store.profile import profile
from cogenesis.store.remove import remove
from cogenesis.store.search import search
from cogenesis.store.show import show
from cogenesis.store.update import update
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(help="Show, change and search the profile and past texts on this device.", no_args_is_help=True)
app.command()(search)
app.command()(embed)
app.command("import")(import_file)
app.command()(show)
app.command()(add)
app.command()(update)
app.command()(remove)
app.command()(profile)
