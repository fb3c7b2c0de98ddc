"""Recognises what follows a pattern and is no word: e-mail and web addresses, handles, dates, telephone numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from edge_runtime.privacy.folding import squeeze
from edge_runtime.privacy.word_forms import number_words

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "(?:" + "|".join(f"{name}|{name[:3]}\\.?" for name in _MONTHS) + "|sept\\.?)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_THING = re.compile(
    r"(?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"
    r"|(?P<handle>https?://[^\s<>\"]+|www\.[^\s<>\"]+|(?<![\w.])[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|edu|io|co|uk|de|app)"
    r"(?:/[^\s<>\"]*)?(?!\w)|(?<!\w)@\w[\w.]*\w)"
    r"|(?P<iso>(?<!\d)(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})(?!\w))"
    r"|(?P<short>(?<![\d./])(?P<a>\d{1,2})[./](?P<b>\d{1,2})[./](?P<c>\d{4}|\d{2})(?![\w/]))"
    rf"|(?P<long>(?<!\w)(?:(?P<d1>{_DAY})(?: of)? (?P<m1>{_MONTH})|(?P<m2>{_MONTH}) (?:the )?(?P<d2>{_DAY}))"
    r"(?!\w)(?:,? (?P<y1>\d{4})(?!\w))?)"
    r"|(?P<phone>(?<!\w)\+?\(?\d(?:[ ()/.-]{0,2}\d){6,}(?!\w))",
    re.IGNORECASE,
)
_PHONE_SUFFIX = 7  # digits by which a telephone number is known without its prefixes
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Thing:
    """One of them: its kind, as it is written, its plain letters, and the plain letters of all its forms."""

    kind: str
    surface: str
    key: str
    forms: frozenset[str]


def things(text: str) -> Iterator[Thing]:
    """Every e-mail address, web address, handle, date and telephone number of a text, in order."""
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", unicodedata.normalize("NFKC", text))
    for match in _THING.finditer(text):
        surface = match.group().rstrip(".,;:!?)'")
        key = squeeze(surface)
        if not key:
            continue
        if match["email"]:
            spoken = surface.replace("@", " at ").replace(".", " dot ")
            yield Thing("email", surface, key, frozenset({key, squeeze(spoken)}))
        elif match["handle"]:
            bare = re.sub(r"\Ahttps?://(?:www\.)?|\Awww\.", "", surface, flags=re.IGNORECASE)
            yield Thing("handle", surface, key, frozenset({key, squeeze(bare)}))
        elif match["phone"]:
            yield Thing("phone", surface, key, phone_forms(key))
        else:
            yield Thing("date", surface, key, date_forms(match) | {key})


def phone_forms(digits: str) -> frozenset[str]:
    """A telephone number with and without its prefixes, and digit by digit in words."""
    suffixes = {digits[start:] for start in range(max(len(digits) - _PHONE_SUFFIX, 0) + 1)}
    return frozenset(suffixes | {"".join(_DIGITS[int(digit)] for digit in suffix) for suffix in suffixes})


def date_forms(match: re.Match[str]) -> frozenset[str]:
    """A date in all orders, with the month as number, name or abbreviation."""
    forms: set[str] = set()
    for year, month, day in _readings(match):
        if not (1 <= month <= 12 and 1 <= day <= 31):
            continue
        names = {_MONTHS[month - 1], _MONTHS[month - 1][:3], *(["sept"] if month == 9 else [])}
        days = {str(day), f"{day:02}", *(f"{day}{ending}" for ending in ("st", "nd", "rd", "th")), *number_words(day)}
        years = {"", year, year[2:]} if year else {""}
        for a_year in years:
            for a_day in days:
                for name in names:
                    forms |= {a_day + name + a_year, a_day + "of" + name + a_year, name + a_day + a_year}
                    forms.add(name + "the" + a_day + a_year)
        for months in {str(month), f"{month:02}"}:
            for a_day in {str(day), f"{day:02}"}:
                for a_year in years - {""}:
                    forms |= {a_year + months + a_day, a_day + months + a_year, months + a_day + a_year}
                if not year and len(months + a_day) > 2:
                    forms |= {months + a_day, a_day + months}
    return frozenset(forms)


def _readings(match: re.Match[str]) -> Iterator[tuple[str, int, int]]:
    """The (year, month, day) that a date may mean; "" where it has no year."""
    if match["iso"]:
        yield match["y"], int(match["m"]), int(match["d"])
    elif match["short"]:
        first, second, year = int(match["a"]), int(match["b"]), match["c"]
        century = "20" if len(year) == 2 and int(year) < 50 else "19"
        year = year if len(year) == 4 else century + year
        yield year, second, first
        yield year, first, second
    else:
        name = (match["m1"] or match["m2"]).casefold()[:3]
        day = re.sub(r"\D", "", match["d1"] or match["d2"])
        yield match["y1"] or "", 1 + next(i for i, month in enumerate(_MONTHS) if month.startswith(name)), int(day)
