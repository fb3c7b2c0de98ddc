"""Defines a past text in the profile store, and checks its values."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from edge_runtime.errors import RequestError


@dataclass(frozen=True, slots=True)
class NewItem:
    """A past text to store.

    Attributes:
        title: the task that the text was written for.
        text: the user's text.
        date: date of the text as YYYY-MM-DD, or None.
        origin: id of the text in the imported file, or None.
        title_counts: whether searches include the title.
    """

    title: str = field(repr=False)
    text: str = field(repr=False)
    date: str | None = None
    origin: str | None = None
    title_counts: bool = True

    @property
    def searched(self) -> str:
        """The text that searches read."""
        return searched_text(self.title, self.text, self.title_counts)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A stored past text. Its `id` is never reused; the other fields are as in `NewItem`."""

    id: int
    title: str = field(repr=False)
    text: str = field(repr=False)
    date: str | None = None
    origin: str | None = None
    title_counts: bool = True


def searched_text(title: str, text: str, title_counts: bool) -> str:
    """Return the part of a past text that searches read."""
    return f"{title} {text}" if title_counts else text


def storable(name: str, text: str) -> str:
    """Return the text after checking that it can be encoded.

    Raises:
        RequestError: the text contains a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"This can't be stored: the {name} holds half of a surrogate pair. Remove it.") from None
    return text


def filled(name: str, text: str) -> str:
    """Return the text after checking that it is not blank and can be encoded.

    Raises:
        RequestError: the text is blank or contains a lone surrogate.
    """
    if not text.strip():
        raise RequestError(f"This can't be stored: the {name} is empty. Give one.")
    return storable(name, text)


def parse_lamp_date(text: str) -> datetime.date:
    """Read a date of LaMP's files: Y-M-D, leading zeros optional, or a year alone, which is its first day.

    Raises:
        ValueError: the text has another form, or there is no such day.
    """
    if len(text) == 4 and text.isdecimal():
        return datetime.date(int(text), 1, 1)
    year, month, day = (int(part) for part in text.split("-"))
    return datetime.date(year, month, day)


def iso_date(value: object) -> str | None:
    """Return a date as YYYY-MM-DD; None stays None.

    Raises:
        RequestError: the value is not a date.
    """
    if value is None:
        return None
    try:
        return datetime.date.fromisoformat(value).isoformat()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RequestError("This can't be stored: the date is not of the form YYYY-MM-DD. Correct it.") from None
