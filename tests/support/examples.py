"""How many examples hypothesis tries of a property, by the profile in use (conftest.py)."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int) -> int:
    """So many in `make test`, at most ten in `make test-fast`, and five times as many in `make test-slow`."""
    return {"fast": min(number, 10), "thorough": 5 * number}.get(settings.get_current_profile_name(), number)
