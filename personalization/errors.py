"""Every error of what learns about users, named for its cause; messages say what is wrong, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import CogenesisError

if TYPE_CHECKING:
    from collections.abc import Sequence


class PersonalizationError(CogenesisError):
    """Something about a user can't be learned."""

    exit_code = 9


class RunnerError(PersonalizationError):
    """The cluster can't be used, or its workers keep dying."""


class DataError(PersonalizationError):
    """A file with users' data can't be read, or is not of the form it should be."""


class SettingsError(PersonalizationError):
    """Settings contradict each other, don't fit the model, or differ from those of what is already there."""


class TrainingError(PersonalizationError):
    """A user's adapter can't be trained."""


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some names in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
