"""The cloud view: what the cloud sees as "generated so far", grown with the answer and cut back with its drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class CloudView(Protocol):
    """Turns the tokens of an answer into those that may leave, one by one.

    What was released is never taken back by later tokens, so the view of a longer answer begins with that of a
    shorter one. A view is a function of the tokens alone, whatever was pushed and taken back in between.
    """

    @property
    def length(self) -> int:
        """How many tokens of the answer were pushed."""
        ...

    @property
    def released(self) -> Sequence[int]:
        """The tokens that the cloud may see."""
        ...

    @property
    def asks(self) -> bool:
        """Whether the cloud can be asked for the row after them: nothing of the answer is held back."""
        ...

    def push(self, token: int) -> None:
        """Add a token of the answer, or of its draft."""
        ...

    def rewind(self, length: int) -> None:
        """Back to the first `length` tokens of the answer."""
        ...


class OpenView:
    """The answer as it is, as in CoGenesis' logit variant."""

    def __init__(self) -> None:
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        """How many tokens of the answer were pushed."""
        return len(self._tokens)

    @property
    def released(self) -> Sequence[int]:
        """All of them."""
        return self._tokens

    @property
    def asks(self) -> bool:
        """Always."""
        return True

    def push(self, token: int) -> None:
        """Add a token."""
        self._tokens.append(token)

    def rewind(self, length: int) -> None:
        """Back to the first `length` tokens."""
        del self._tokens[length:]
