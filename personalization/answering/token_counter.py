"""Counts tokens."""

from __future__ import annotations

from typing import Protocol

from edge_runtime.text.tokenizer import Tokenizer


class TokenCounter(Protocol):
    """Counts and cuts in the tokens of some model."""

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def cut(self, text: str, most: int) -> str:
        """The longest beginning of a text that is found of at most so many tokens, 0 or more."""
        ...


class TokenizerCounter:
    """Counts in a tokenizer's tokens, special ones that it adds left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend

    def count(self, text: str) -> int:
        """See `TokenCounter`."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def cut(self, text: str, most: int) -> str:
        """See `TokenCounter`; a cut lies between characters, where one token ends."""
        ends = [end for _, end in self._backend.encode(text, add_special_tokens=False).offsets]
        if len(ends) <= most:
            return text
        for kept in range(most, 0, -1):
            beginning = text[: ends[kept - 1]]
            # A beginning may be split otherwise than the whole was.
            if self.count(beginning) <= most:
                return beginning
        return ""
