"""Parts of a job for several machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from personalization.errors import SettingsError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th item, from the `index`-th on (from 1): one of several processes' parts."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/5".

        Raises:
            SettingsError: it is not of this form.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise SettingsError(f"--shard must be I/N with I in 1 .. N, such as 2/5, not {text}.")
        return cls(int(index), int(count))

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This shard's items."""
        return items[self.index - 1 :: self.count]

    @property
    def summary_name(self) -> str:
        """Name of the file with the summary; shards don't write over each other's."""
        return self.file_name("users", "json")

    def file_name(self, stem: str, ending: str) -> str:
        """Name of a file of this shard alone."""
        return f"{stem}.{ending}" if self.count == 1 else f"{stem}.{self.index}-of-{self.count}.{ending}"
