"""`cogenesis privacy`: checks the messages sent to the cloud."""

from __future__ import annotations

from cogenesis.privacy.audit import audit
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(no_args_is_help=True)
app.command()(audit)


@app.callback()
def _group() -> None:
    """Check the messages sent to the cloud for private text."""
