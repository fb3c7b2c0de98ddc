"""`cogenesis privacy`: checks what was sent to the cloud."""

from __future__ import annotations

import typer

from cogenesis.privacy.audit import audit

app = typer.Typer(no_args_is_help=True)
app.command()(audit)


@app.callback()
def _group() -> None:
    """Check what was sent to the cloud, and what of it was private."""
