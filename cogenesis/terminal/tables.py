"""Prints results for many users: progress lines on stderr with the remaining time, and a table on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from cogenesis.terminal.flag_names import with_flags

_PAGE = 120
"""Characters per line if the output is not a terminal."""


class ProgressLines:
    """Prints one line per user on stderr: users done so far, this user's result, and the remaining time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._worked = 0

    def __call__(self, user: str, what: str, done: int, total: int, *, worked: bool) -> None:
        """Print a line.

        Args:
            user: id of the user.
            what: result for the user.
            done: number of finished users, including this one.
            total: number of all users.
            worked: whether this run did the work; only such users count for the remaining time.
        """
        self._worked += worked
        left = ""
        if self._worked and done < total:
            seconds = (self._clock() - self._began) / self._worked * (total - done)
            left = f", about {_duration(seconds)} left"
        told = with_flags(what).rstrip(".")
        print(f"[{done}/{total}] {_visible(user)}: {told}{left}", file=sys.stderr, flush=True)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print a table on stdout, one row per mapping, with floats to four decimals."""
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
    """Replace unprintable characters, because an id may be any text but must not break the line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(round(seconds), 1)} s"
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Escape unprintable characters of text from a file, so that they can't move the terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
