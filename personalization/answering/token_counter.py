"""Counts tokens and truncates text to a number of tokens."""

from __future__ import annotations

from typing import Protocol

from edge_runtime.text.tokenizer import Tokenizer


class TokenCounter(Protocol):
    """Counts and truncates in the tokens of one model."""

    def count(self, text: str) -> int:
        """Return the number of tokens in a text."""
        ...

    def cut(self, text: str, most: int) -> str:
        """Return the longest prefix of a text that is found with at most `most` tokens, 0 or more."""
        ...


class TokenizerCounter:
    """Counts in a tokenizer's tokens, without the special tokens that it adds."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend

    def count(self, text: str) -> int:
        """See `TokenCounter`."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def cut(self, text: str, most: int) -> str:
        """See `TokenCounter`; the text is truncated at a token's end, between characters."""
        ends = [end for _, end in self._backend.encode(text, add_special_tokens=False).offsets]
        if len(ends) <= most:
            return text
        for kept in range(most, 0, -1):
            beginning = text[: ends[kept - 1]]
            # A prefix may be tokenized differently than the whole text.
            if self.count(beginning) <= most:
                return beginning
        return ""
