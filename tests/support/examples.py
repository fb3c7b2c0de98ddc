"""Sets how many examples hypothesis tries per property, by the profile in use (conftest.py)."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> int:
    """Return `number` in `make test`, at most ten in `make test-fast`, and five times `number` in `make test-slow`."""
    return {"fast": min(number, 10), "thorough": 5 * number}.get(settings.get_current_profile_name(), number)
