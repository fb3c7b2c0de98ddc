"""Errors of this package, each named for its cause; a message says what is wrong, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import CogenesisError

if TYPE_CHECKING:
    from collections.abc import Sequence


class PersonalizationError(CogenesisError):
    """Learning from a user's data failed."""

    exit_code = 9


class ModelError(PersonalizationError):
    """A model or an encoder can't be loaded: its files are missing or damaged, or it is of another kind."""


class RunnerError(PersonalizationError):
    """The cluster can't be used, or its workers keep dying."""


class DataError(PersonalizationError):
    """A file with users' data can't be read or has the wrong format."""


class SettingsError(PersonalizationError):
    """Settings contradict each other, don't fit the model, or differ from the settings of existing output."""


class TrainingError(PersonalizationError):
    """A user's adapter can't be trained."""


def check_setting(name: str, value: object, holds: bool, form: str) -> None:
    """Refuse a setting of the wrong form.

    Raises:
        SettingsError: it does not hold.
    """
    if not holds:
        raise SettingsError(f"`{name}` must be {form}, not {value}.")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Join at most `most` names for a sentence; count the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
