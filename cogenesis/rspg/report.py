"""Prints the gains of a pool of retrievers."""

from __future__ import annotations

from personalization.retrievers.selector_data import Bounds


def bounds_in_words(found: Bounds) -> list[str]:
    """Return the bounds as lines of a report."""
    width = max(len(name) for name in (*found.retrievers, "oracle", "random"))
    rows = {**found.retrievers, "random": found.random, "oracle": found.oracle}
    return [f"{name:{width}}  {gain:.4f}{'  best alone' if name == found.best else ''}" for name, gain in rows.items()]
