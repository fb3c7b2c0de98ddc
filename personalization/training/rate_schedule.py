"""Names the schedules of a learning rate."""

from __future__ import annotations

from enum import StrEnum

from personalization.errors import SettingsError


class RateSchedule(StrEnum):
    """How the learning rate falls after the warm-up: not at all, linearly to zero, or along half a cosine to zero."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


def parse_rate_schedule(name: RateSchedule | str) -> RateSchedule:
    """Return the schedule with this name.

    Raises:
        SettingsError: there is no such schedule.
    """
    try:
        return RateSchedule(name)
    except ValueError:
        raise SettingsError(f"`schedule` must be one of {', '.join(RateSchedule)}, not '{name}'.") from None
