"""Defines the interface of an engine, which computes a model's log-probabilities for the server.

The server calls an engine from only one thread, so an engine needs no locks.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol, TypeVar

from edge_runtime.cloud import AnswerPiece
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs
from edge_runtime.privacy.messages import AnswerRequest

State = TypeVar("State")


class Engine(Protocol[State]):
    """A large model behind the server.

    `State` is a session's state: the prompt, the cloud's copy of the answer, and their KV cache.

    Attributes:
        model: the model's name.
        vocab_size: width of a row; the ids that both the model and its tokenizer have.
        context_length: maximum length of prompt and answer together.
        tokenizer_fingerprint: see `edge_runtime.text.tokenizer.vocabulary_fingerprint`.
    """

    model: str
    vocab_size: int
    context_length: int
    tokenizer_fingerprint: str

    def open(self, instruction: str) -> State:
        """Make a session's state for the instruction; the model does not run yet.

        Raises:
            RefusalError: the instruction fills the context.
        """
        ...

    def prompt_tokens(self, state: State) -> int:
        """Return the length of the session's prompt."""
        ...

    def prepare(
        self, state: State, *, keep: int, tokens: Sequence[int], rows: Sequence[int]
    ) -> Generator[None, None, None]:
        """Do the preparation for a `score` with the same arguments, one bounded part at a time.

        The server serves other sessions between parts, so a long prompt or the recomputation of an evicted cache does
        not block them. The caller may stop early: `score` does the rest, and only `score` changes the session's answer.

        Raises:
            RefusalError: as in `score`.
        """
        ...

    def score(
        self, state: State, *, keep: int, tokens: Sequence[int], rows: Sequence[int], form: RowFormat
    ) -> list[SparseLogProbs]:
        """Keep the first `keep` tokens of the answer, append `tokens`, and return the requested rows.

        Row p is the distribution of the answer's token p given the instruction and tokens 0 .. p-1. The engine computes
        only tokens that are not cached. A rejected call leaves the state unchanged.

        Args:
            state: the session's state.
            keep: number of tokens of the session's answer to keep.
            tokens: tokens to append.
            rows: ascending row numbers in 0 .. keep + len(tokens), less than `wire.MAX_ROWS` apart; if empty, nothing
                is computed.
            form: how rows are truncated.

        Raises:
            RefusalError: the session has fewer than `keep` tokens, a token is not in the vocabulary, a row is out of
                range, the rows lie too far apart, or the context is full.
        """
        ...

    def cache_bytes(self, state: State) -> int:
        """Return the size of the session's KV cache."""
        ...

    def drop_cache(self, state: State) -> None:
        """Free the KV cache; the session continues and recomputes the cache at its next use."""
        ...

    def close(self, state: State) -> None:
        """Free the state's memory; the state is not used again."""
        ...

    def sketch(self, instruction: str) -> Generator[str | None, None, None]:
        """Write an outline of 8 to 15 points, one whole line (with its newline) at a time.

        Yields None after each part of the work without new text, so that the server can serve other sessions.

        Raises:
            RefusalError: the instruction fills the context.
        """
        ...

    def answer(self, request: AnswerRequest) -> Generator[AnswerPiece | None, None, None]:
        """Answer the instruction; the last piece has a finish reason. Yields None as in `sketch`.

        Raises:
            RefusalError: the instruction fills the context.
        """
        ...
