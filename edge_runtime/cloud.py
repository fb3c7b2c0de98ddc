"""What the edge runtime needs of a cloud, as protocols; `cloud_bridge.client` implements them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from edge_runtime.privacy import AnswerRequest, InfoRequest, OpenRequest, Released, SketchRequest, VerifyRequest
from edge_runtime.sparse import SparseLogProbs


@dataclass(frozen=True, slots=True)
class CloudInfo:
    """What a cloud says of itself.

    Attributes:
        model: name of the model it serves.
        vocab_size: width of its logits.
        context_length: positions of its context.
        tokenizer_fingerprint: of its vocabulary (see `edge_runtime.tokenizer`).
        max_top_k: the most log-probabilities a row it returns.
    """

    model: str
    vocab_size: int
    context_length: int
    tokenizer_fingerprint: str
    max_top_k: int


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """Part of an answer that the cloud writes on its own.

    Attributes:
        text: new text.
        token_ids: the tokens it stands for.
        finish_reason: "" until the last piece, then "stop" or "length".
        prompt_tokens: length of the cloud's prompt; 0 until the last piece.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0


class CloudSession(Protocol):
    """One generation's stream. All errors are `edge_runtime.errors.CloudError`s."""

    def verify(self, request: Released[VerifyRequest]) -> Future[Sequence[SparseLogProbs]]:
        """Send at once and return; the future gives rows `first_row .. keep + len(tokens)`, in order.

        Replies come in the order of the requests. The first future also reports what was wrong with the opening.
        """
        ...

    def close(self) -> None:
        """End the stream and free the server's session; what is still under way fails."""
        ...


class Cloud(Protocol):
    """A connection to a cloud. Safe to share between threads and generations."""

    def info(self, request: Released[InfoRequest]) -> CloudInfo:
        """Ask which model is served."""
        ...

    def open(self, request: Released[OpenRequest]) -> CloudSession:
        """Start a session; does not wait for the server, so that the first `verify` travels with it."""
        ...

    def sketch(self, request: Released[SketchRequest]) -> Iterator[str]:
        """Stream an outline of 8 to 15 short points."""
        ...

    def answer(self, request: Released[AnswerRequest]) -> Iterator[AnswerPiece]:
        """Stream the cloud's own answer."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
