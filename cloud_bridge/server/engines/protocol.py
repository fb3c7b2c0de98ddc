"""What the server needs of an engine: something that computes a model's log-probabilities.

The server calls an engine from one thread alone, so an engine needs no locks.
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

    `State` is what a session holds: the prompt, the answer as the cloud knows it, and their KV cache.

    Attributes:
        model: its name.
        vocab_size: width of a row: ids that both the model and its tokenizer know.
        context_length: positions for prompt and answer together.
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
        """Length of the session's prompt."""
        ...

    def prepare(
        self, state: State, *, keep: int, tokens: Sequence[int], rows: Sequence[int]
    ) -> Generator[None, None, None]:
        """Do what a `score` with the same arguments would have to do first, a bounded part at a time.

        Between two parts the server serves others, so that a long prompt or a view that is computed anew holds nobody
        up. It may be left unfinished: `score` does what is missing, and the session's answer changes only there.

        Raises:
            RefusalError: as `score`.
        """
        ...

    def score(
        self, state: State, *, keep: int, tokens: Sequence[int], rows: Sequence[int], form: RowFormat
    ) -> list[SparseLogProbs]:
        """Make the first `keep` tokens of the answer and `tokens` the answer, and give the rows asked for.

        Row p is the distribution of the answer's token p given the instruction and tokens 0 .. p-1. Only what differs
        from what the cache holds is computed. A refused call leaves the state as it was.

        Args:
            state: the session's.
            keep: how many tokens of the session's answer stay.
            tokens: that follow them.
            rows: ascending, each in 0 .. keep + len(tokens), within `MAX_ROWS` of the wire of each other; none computes
                nothing.
            form: how rows are cut.

        Raises:
            RefusalError: the session has fewer than `keep` tokens, a token is not in the vocabulary, a row is out of
                range, the rows lie too far apart, or the context is full.
        """
        ...

    def cache_bytes(self, state: State) -> int:
        """Memory of the session's KV cache."""
        ...

    def drop_cache(self, state: State) -> None:
        """Free the KV cache; the session goes on and computes it again when it is next used."""
        ...

    def close(self, state: State) -> None:
        """Free the state's memory; it is not used again."""
        ...

    def sketch(self, instruction: str) -> Generator[str | None, None, None]:
        """Write an outline of 8 to 15 points, a whole line (with its newline) at a time.

        None says that a part of the work is done and there is nothing to send yet: others may have their turn.

        Raises:
            RefusalError: the instruction fills the context.
        """
        ...

    def answer(self, request: AnswerRequest) -> Generator[AnswerPiece | None, None, None]:
        """Answer the instruction; the last piece has a finish reason. None as in `sketch`.

        Raises:
            RefusalError: the instruction fills the context.
        """
        ...
