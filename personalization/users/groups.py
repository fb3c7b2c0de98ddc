"""Collects the entries of a file by user: one that is damaged makes its user unusable, and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from personalization.errors import DataError
from personalization.users.data import Pair, Unusable, UserData, UserFile


class UserEntry:
    """What one entry of a file (a question, a record) tells of its user."""

    __slots__ = ("items", "pairs", "profile", "questions")

    def __init__(self, pairs: Sequence[Pair | None], questions: Sequence[Pair], profile: str = "") -> None:
        """Hold an entry's parts.

        Args:
            pairs: one for each item of the profile; None where the item makes no pair because a text is empty.
            questions: for evaluation alone.
            profile: who the user is.
        """
        self.items = len(pairs)
        self.pairs = [pair for pair in pairs if pair is not None]
        self.questions = [pair for pair in questions if pair.task and pair.answer]
        self.profile = profile


def group_users(task: str, entries: Iterable[tuple[str, Callable[[], UserEntry]]]) -> UserFile:
    """Merge entries of the same user.

    Args:
        task: what kind of task it is.
        entries: user and a function that reads the entry, or raises a `DataError` with what is wrong.

    Returns:
        Users in the order of their first entry. Pairs that come again are left out, and so are those that share task or
        answer with a question of the same user. Of several profiles the last one counts.
    """
    found: dict[str, list[UserEntry]] = {}
    problems: dict[str, str] = {}
    for user, read in entries:
        present = found.setdefault(user, [])
        try:
            present.append(read())
        except DataError as error:
            problems.setdefault(user, str(error))
    users, unusable, questions = [], [], {}
    for user, parts in found.items():
        data, asked = _merge(user, task, parts)
        items = sum(part.items for part in parts)
        if user in problems:
            unusable.append(Unusable(user, f"{problems[user]}."))
        elif not items:
            unusable.append(Unusable(user, "The profile has no items."))
        elif not data.pairs:
            unusable.append(Unusable(user, f"None of the profile's {items} items can be used: their texts are empty."))
        else:
            users.append(data)
            if asked:
                questions[user] = asked
    return UserFile(tuple(users), tuple(unusable), questions)


def _merge(user: str, task: str, parts: Sequence[UserEntry]) -> tuple[UserData, tuple[Pair, ...]]:
    asked = tuple(dict.fromkeys(pair for part in parts for pair in part.questions))
    tasks, answers = {pair.task for pair in asked}, {pair.answer for pair in asked}
    pairs = dict.fromkeys(pair for part in parts for pair in part.pairs)
    kept = tuple(pair for pair in pairs if pair.task not in tasks and pair.answer not in answers)
    skipped = sum(part.items - len(part.pairs) for part in parts)
    profile = next((part.profile for part in reversed(parts) if part.profile), "")
    return UserData(user, task, kept, profile, skipped), asked
