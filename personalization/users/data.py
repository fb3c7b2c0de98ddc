"""What is known of a user for learning: pairs of a task and the user's own answer, and who they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_runtime.context import HistoryItem, PrivateContext


@dataclass(frozen=True, slots=True)
class Pair:
    """A task as a user would put it, and what this user answered."""

    task: str = field(repr=False)
    answer: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserData:
    """One user's data for training.

    Attributes:
        user: id; any text.
        task: what kind of task it is, "LaMP-5" or "CoGenesis".
        pairs: tasks and answers, no two the same, in the order of the file.
        profile: who the user is; "" where that is unknown.
        skipped: items of the file that make no pair because a text is empty.
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
    """A user whose data can't be used, and why, in a sentence."""

    user: str
    reason: str


@dataclass(frozen=True, slots=True)
class UserFile:
    """What a file says of its users, each once, in the order in which they appear.

    Attributes:
        users: those that can be trained.
        unusable: those that can't.
        questions: user to pairs that are for evaluation alone; none of them is among the user's `pairs`.
    """

    users: tuple[UserData, ...]
    unusable: tuple[Unusable, ...] = ()
    questions: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of all, those that can be trained first."""
        return (*(user.user for user in self.users), *(user.user for user in self.unusable))


def context_of(profile: str, pairs: Sequence[Pair]) -> PrivateContext:
    """Profile and past texts as the edge runtime takes them: a text's title is the task that it was written for."""
    return PrivateContext(profile, tuple(HistoryItem(pair.task, pair.answer) for pair in pairs))


def user_seed(seed: int, user: str) -> int:
    """A seed for one user, of 63 bits: the same wherever, whenever and beside whomever the user is trained."""
    digest = hashlib.sha256(f"{seed}\0{user}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
