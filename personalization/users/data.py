"""A user's data for learning: pairs of a task and the user's own answer, and a profile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_runtime.context import HistoryItem, PrivateContext


@dataclass(frozen=True, slots=True)
class Pair:
    """A task in a user's words, and this user's answer."""

    task: str = field(repr=False)
    answer: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserData:
    """One user's data for training.

    Attributes:
        user: id; any text.
        task: name of the task, such as "LaMP-5" or "CoGenesis".
        pairs: distinct tasks and answers, in the order of the file.
        profile: description of the user; "" if unknown.
        skipped: number of items in the file that give no pair because a text is empty.
    """

    user: str
    task: str
    pairs: tuple[Pair, ...]
    profile: str = field(default="", repr=False)
    skipped: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of everything that training depends on, in lower-case hex."""
        pairs = [[pair.task, pair.answer] for pair in self.pairs]
        return hashlib.sha256(json.dumps([self.user, self.task, self.profile, pairs]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Unusable:
    """A user whose data can't be used, and the reason in a sentence."""

    user: str
    reason: str


@dataclass(frozen=True, slots=True)
class UserFile:
    """A file's users, each once, in order of first appearance.

    Attributes:
        users: users that can be trained.
        unusable: users that can't be trained.
        questions: pairs by user, for evaluation only; none of them is among the user's `pairs`.
    """

    users: tuple[UserData, ...]
    unusable: tuple[Unusable, ...] = ()
    questions: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of all users, trainable ones first."""
        return (*(user.user for user in self.users), *(user.user for user in self.unusable))


def context_of(profile: str, pairs: Sequence[Pair]) -> PrivateContext:
    """Convert profile and past texts to the edge runtime's form: a text's title is the task that it answers."""
    return PrivateContext(profile, tuple(HistoryItem(pair.task, pair.answer) for pair in pairs))


def user_seed(seed: int, user: str) -> int:
    """Return a 63-bit seed for one user, independent of machine, time and other users."""
    digest = hashlib.sha256(f"{seed}\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
