"""Recognises private text by its pattern: e-mail and web addresses, handles, dates, telephone numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edge_runtime.privacy.folding import squeeze
from edge_runtime.privacy.word_forms import number_words

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "(?:" + "|".join(f"{name}|{name[:3]}\\.?" for name in _MONTHS) + "|sept\\.?)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PHONE_SUFFIX = 7  # digits that identify a telephone number without its prefixes
_DASHES = re.compile(r"[\u2010-\u2015\u2212]")
_WEB_PREFIX = re.compile(r"\Ahttps?://(?:www\.)?|\Awww\.", re.IGNORECASE)
_SURROUNDINGS = ".,;:!?)'"  # that a pattern may include at the end of a sentence


@dataclass(frozen=True, slots=True)
class Entity:
    """Text that a pattern matched.

    Attributes:
        kind: "email", "handle", "date" or "phone".
        surface: the text as written.
        key: plain letters of the surface.
        forms: plain letters of all its forms.
    """

    kind: str
    surface: str
    key: str
    forms: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Pattern:
    """How a kind of entity is written, and how to find its other forms.

    Attributes:
        kind: kind of the entity.
        regex: matches the entity; `forms` may use its named groups.
        forms: returns the plain letters of the other forms, from the match and the entity's surface.
    """

    kind: str
    regex: str
    forms: Callable[[re.Match[str], str], set[str]]


def entities(text: str) -> Iterator[Entity]:
    """Yield every e-mail address, web address, handle, date and telephone number of a text, in order.

    Example: "Mail ada@example.org by 3 May." has the email "ada@example.org" and the date "3 May".
    """
    for match in _ANY.finditer(_DASHES.sub("-", unicodedata.normalize("NFKC", text))):
        surface = match.group().rstrip(_SURROUNDINGS)
        key = squeeze(surface)
        if key:
            pattern = next(pattern for name, pattern in _PATTERNS.items() if match[name])
            yield Entity(pattern.kind, surface, key, frozenset(pattern.forms(match, surface) | {key}))


def _email_forms(_match: re.Match[str], surface: str) -> set[str]:
    """Return the spoken form: "ada at example dot org"."""
    return {squeeze(surface.replace("@", " at ").replace(".", " dot "))}


def _handle_forms(_match: re.Match[str], surface: str) -> set[str]:
    """Return the form without prefix: "example.org/ada" for "https://www.example.org/ada"."""
    return {squeeze(_WEB_PREFIX.sub("", surface))}


def _phone_forms(_match: re.Match[str], surface: str) -> set[str]:
    """Return the number with and without its prefixes, and digit by digit in words."""
    digits = squeeze(surface)
    suffixes = {digits[start:] for start in range(max(len(digits) - _PHONE_SUFFIX, 0) + 1)}
    return suffixes | {"".join(_DIGITS[int(digit)] for digit in suffix) for suffix in suffixes}


def _iso_date_forms(match: re.Match[str], _surface: str) -> set[str]:
    """Return the forms of a date like 2024-05-03."""
    return _date_forms(match["y"], int(match["m"]), int(match["d"]))


def _numeric_date_forms(match: re.Match[str], _surface: str) -> set[str]:
    """Return the forms of a date like 3/5/24 or 3.5.2024; either number may be the month, so both are tried."""
    first, second, year = int(match["a"]), int(match["b"]), match["c"]
    if len(year) == 2:
        year = ("20" if int(year) < 50 else "19") + year
    return _date_forms(year, second, first) | _date_forms(year, first, second)


def _written_date_forms(match: re.Match[str], _surface: str) -> set[str]:
    """Return the forms of a date like "3 May" or "May 3rd, 2024"."""
    name = (match["m1"] or match["m2"]).casefold()[:3]
    month = 1 + next(index for index, month in enumerate(_MONTHS) if month.startswith(name))
    return _date_forms(match["y1"] or "", month, int(re.sub(r"\D", "", match["d1"] or match["d2"])))


def _date_forms(year: str, month: int, day: int) -> set[str]:
    """Return a date in all orders, with the month as number, name or abbreviation; `year` is "" if there is none."""
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return set()
    forms: set[str] = set()
    names = {_MONTHS[month - 1], _MONTHS[month - 1][:3], *(["sept"] if month == 9 else [])}
    days = {str(day), f"{day:02}", *(f"{day}{ending}" for ending in ("st", "nd", "rd", "th")), *number_words(day)}
    for a_year in {"", year, year[2:]} if year else {""}:
        for a_day in days:
            for name in names:
                forms |= {a_day + name + a_year, a_day + "of" + name + a_year, name + a_day + a_year}
                forms.add(name + "the" + a_day + a_year)
    for months in {str(month), f"{month:02}"}:
        for a_day in {str(day), f"{day:02}"}:
            for a_year in {year, year[2:]} if year else set():
                forms |= {a_year + months + a_day, a_day + months + a_year, months + a_day + a_year}
            if not year and len(months + a_day) > 2:
                forms |= {months + a_day, a_day + months}
    return forms


# To add a kind of entity, add one row and its forms. If two rows match at the same place, the first one counts.
_PATTERNS = {
    "email": _Pattern("email", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _email_forms),
    "handle": _Pattern(
        "handle",
        r"https?://[^\s<>\"]+|www\.[^\s<>\"]+|(?<![\w.])[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|edu|io|co|uk|de|app)"
        r"(?:/[^\s<>\"]*)?(?!\w)|(?<!\w)@\w[\w.]*\w",
        _handle_forms,
    ),
    "iso_date": _Pattern("date", r"(?<!\d)(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})(?!\w)", _iso_date_forms),
    "numeric_date": _Pattern(
        "date", r"(?<![\d./])(?P<a>\d{1,2})[./](?P<b>\d{1,2})[./](?P<c>\d{4}|\d{2})(?![\w/])", _numeric_date_forms
    ),
    "written_date": _Pattern(
        "date",
        rf"(?<!\w)(?:(?P<d1>{_DAY})(?: of)? (?P<m1>{_MONTH})|(?P<m2>{_MONTH}) (?:the )?(?P<d2>{_DAY}))"
        r"(?!\w)(?:,? (?P<y1>\d{4})(?!\w))?",
        _written_date_forms,
    ),
    "phone": _Pattern("phone", r"(?<!\w)\+?\(?\d(?:[ ()/.-]{0,2}\d){6,}(?!\w)", _phone_forms),
}
_ANY = re.compile("|".join(f"(?P<{name}>{one.regex})" for name, one in _PATTERNS.items()), re.IGNORECASE)
