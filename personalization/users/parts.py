"""Parts of users by share."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from personalization.errors import SettingsError


def parts_by_share(count: int, shares: Mapping[str, float]) -> list[str]:
    """The part of each of so many, in order; every beginning of the parts has its share, rounded."""
    total = sum(shares.values())
    ends = [round(count * reached / total) for reached in accumulate(shares.values())]
    starts = [0, *ends[:-1]]
    return [part for part, start, end in zip(shares, starts, ends, strict=True) for _ in range(end - start)]


def shares_of(parts: list[str]) -> dict[str, float]:
    """Shares by part.

    Raises:
        SettingsError: one is not of the form, or there are fewer than two.
    """
    shares: dict[str, float] = {}
    for part in parts:
        name, _, share = part.partition("=")
        try:
            number = float(share)
        except ValueError:
            number = 0.0
        if not name.isidentifier() or name in shares or not 0 < number < float("inf"):
            raise SettingsError(f"--part must be a new name and a share above 0, such as train=0.8, not {part}.")
        shares[name] = number
    if len(shares) < 2:
        raise SettingsError("Give two parts or more, such as --part train=0.8 --part dev=0.2.")
    return shares
