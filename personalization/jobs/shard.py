"""Splits a job into parts for several machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from personalization.errors import SettingsError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's part: every `count`-th item, starting at number `index`, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse a text such as "2/5".

        Raises:
            SettingsError: the text has another form.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise SettingsError(f"`shard` must be I/N with I in 1 .. N, such as 2/5, not {text}.")
        return cls(int(index), int(count))

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return this shard's items."""
        return items[self.index - 1 :: self.count]

    @property
    def summary_name(self) -> str:
        """Name of the summary file; each shard has its own."""
        return self.file_name("users", "json")

    def file_name(self, stem: str, ending: str) -> str:
        """Name of a file that belongs to this shard alone."""
        return f"{stem}.{ending}" if self.count == 1 else f"{stem}.{self.index}-of-{self.count}.{ending}"
