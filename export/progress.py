"""Defines how long tasks report progress: they call a function with the current step's text, steps done and total."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress reports."""
