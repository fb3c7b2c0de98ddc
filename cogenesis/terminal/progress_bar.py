"""Shows a progress bar on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

from export.progress import Progress


@contextlib.contextmanager
def progress_bar(visible: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr, and silence the libraries' warnings and logs meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with _quiet_libraries(), Bar(*columns, console=console, disable=not (visible and sys.stderr.isatty())) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence libraries' warnings and logs, which don't concern a user."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
