"""A past text as the profile store takes it and gives it back, and what values it may have."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from edge_runtime.errors import RequestError


@dataclass(frozen=True, slots=True)
class NewItem:
    """A past text that is to be stored.

    Attributes:
        title: the task it was written for.
        text: what the user wrote.
        date: when, as YYYY-MM-DD, or None.
        origin: what the file that it comes from calls it, or None.
        title_counts: whether the title is searched, too.
    """

    title: str = field(repr=False)
    text: str = field(repr=False)
    date: str | None = None
    origin: str | None = None
    title_counts: bool = True

    @property
    def searched(self) -> str:
        """What a search looks at."""
        return searched_text(self.title, self.text, self.title_counts)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A past text as stored: `id` never names another one later; the rest is as in `NewItem`."""

    id: int
    title: str = field(repr=False)
    text: str = field(repr=False)
    date: str | None = None
    origin: str | None = None
    title_counts: bool = True


def searched_text(title: str, text: str, title_counts: bool) -> str:
    """What of a past text a search looks at."""
    return f"{title} {text}" if title_counts else text


def storable(name: str, text: str) -> str:
    """A text that can be written to a file.

    Raises:
        RequestError: it can't.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"This can't be stored: the {name} holds half of a surrogate pair. Remove it.") from None
    return text


def filled(name: str, text: str) -> str:
    """A text that says something and can be written to a file.

    Raises:
        RequestError: it does not, or can't.
    """
    if not text.strip():
        raise RequestError(f"This can't be stored: the {name} is empty. Give some.")
    return storable(name, text)


def iso_date(value: object) -> str | None:
    """A date as YYYY-MM-DD; None stays None.

    Raises:
        RequestError: it is no date.
    """
    if value is None:
        return None
    try:
        return datetime.date.fromisoformat(value).isoformat()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RequestError("This can't be stored: the date is not of the form YYYY-MM-DD. Correct it.") from None
