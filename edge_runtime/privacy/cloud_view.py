"""The cloud view: the tokens that the cloud sees as "generated so far"; it grows with the answer and its drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class CloudView(Protocol):
    """Turns the tokens of an answer into the tokens that may be sent, one by one.

    Later tokens never change released ones, so the view of a longer answer begins with the view of a shorter one. A
    view depends only on the current tokens, not on tokens that were pushed and rewound before.
    """

    @property
    def length(self) -> int:
        """Number of answer tokens pushed so far."""
        ...

    @property
    def released(self) -> Sequence[int]:
        """The tokens that the cloud may see."""
        ...

    @property
    def asks(self) -> bool:
        """Whether the device can ask the cloud for the row after them: no part of the answer is held back."""
        ...

    def push(self, token: int) -> None:
        """Add a token of the answer, or of its draft."""
        ...

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens of the answer."""
        ...


class OpenView:
    """Releases the answer unchanged, as in CoGenesis' logit variant."""

    def __init__(self) -> None:
        self._tokens: list[int] = []

    @property
    def length(self) -> int:
        """Number of answer tokens pushed so far."""
        return len(self._tokens)

    @property
    def released(self) -> Sequence[int]:
        """All tokens of the answer."""
        return self._tokens

    @property
    def asks(self) -> bool:
        """Always true."""
        return True

    def push(self, token: int) -> None:
        """Add a token."""
        self._tokens.append(token)

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens."""
        del self._tokens[length:]
