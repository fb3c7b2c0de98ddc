"""How a learning rate falls."""

from __future__ import annotations

from enum import StrEnum

from personalization.errors import SettingsError


class RateSchedule(StrEnum):
    """How the learning rate falls after the warm-up: not at all, in a line to zero, or along half a cosine to zero."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


def parse_rate_schedule(name: RateSchedule | str) -> RateSchedule:
    """The schedule of a name.

    Raises:
        SettingsError: there is none.
    """
    try:
        return RateSchedule(name)
    except ValueError:
        raise SettingsError(f"There is no schedule '{name}'. Use one of: {', '.join(RateSchedule)}.") from None
