"""Tells what becomes of many users: lines on stderr with the time that is left, a table on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

_PAGE = 120
"""Characters of a line where the output is no terminal."""


class ProgressLines:
    """One line a user on stderr: how many are done, what became of this one, and how long the rest will take."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._worked = 0

    def __call__(self, user: str, what: str, done: int, total: int, *, worked: bool) -> None:
        """Write a line.

        Args:
            user: whose.
            what: became of them.
            done: users that are done, this one included.
            total: of all.
            worked: whether it took time now; only such users tell how long others will take.
        """
        self._worked += worked
        left = ""
        if self._worked and done < total:
            seconds = (self._clock() - self._began) / self._worked * (total - done)
            left = f", about {_duration(seconds)} left"
        print(f"[{done}/{total}] {_visible(user)}: {what.rstrip(chr(46))}{left}", file=sys.stderr, flush=True)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table on stdout, one mapping a row; floats with four digits."""
    console = Console(width=None if sys.stdout.isatty() else _PAGE, highlight=False)
    table = Table(box=None, pad_edge=False)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else _visible(str(value))


def _visible(text: str) -> str:
    """An id may be any text; a line of ours stays one line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
