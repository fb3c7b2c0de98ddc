"""Defines the protocols that the edge runtime expects from a cloud; `cloud_bridge.client` implements them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from edge_runtime.fusion.sparse import SparseLogProbs
from edge_runtime.privacy.gate import Released
from edge_runtime.privacy.messages import AnswerRequest, InfoRequest, OpenRequest, SketchRequest, VerifyRequest


@dataclass(frozen=True, slots=True)
class CloudInfo:
    """A cloud's description of itself.

    Attributes:
        model: name of the served model.
        vocab_size: width of the model's logits.
        context_length: maximum positions of the model's context.
        tokenizer_fingerprint: fingerprint of the vocabulary (see `edge_runtime.text.tokenizer`).
        max_top_k: maximum log-probabilities per row that the cloud returns.
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
        token_ids: tokens of that text.
        finish_reason: "" until the last piece, then "stop" or "length".
        prompt_tokens: length of the cloud's prompt; 0 until the last piece.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Verified:
    """The cloud's reply to one `verify`.

    Attributes:
        rows: one for each requested row, in order; empty if `superseded`.
        compute_seconds: compute time of the cloud's model.
        queue_seconds: time that the request waited in the cloud's queue.
        superseded: whether the cloud had already received a later request that withdraws tokens of this one.
    """

    rows: tuple[SparseLogProbs, ...]
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    superseded: bool = False


class CloudSession(Protocol):
    """One stream of a generation. All errors are `edge_runtime.errors.CloudError`s."""

    @property
    def id(self) -> str:
        """The id with which a later session can resume this one; "" until the cloud has replied."""
        ...

    @property
    def room(self) -> int | None:
        """Maximum tokens of the view that fit into the cloud's context; None until the cloud has replied."""
        ...

    def verify(self, request: Released[VerifyRequest]) -> Future[Verified]:
        """Send the request immediately and return; several may be in flight.

        Replies arrive in the order of the requests. The first future also reports errors from opening the session. The
        first failure ends the session: requests in flight fail with it, and so does every later `verify`.
        """
        ...

    def close(self) -> None:
        """End the stream and free the cloud's session; requests in flight fail."""
        ...

    def abandon(self) -> None:
        """Drop the stream as dead; the cloud keeps the session for a while. The connection is not reused."""
        ...


Piece_co = TypeVar("Piece_co", covariant=True)


class PieceStream(Protocol[Piece_co]):
    """Streams a cloud's output, piece by piece."""

    def __iter__(self) -> Iterator[Piece_co]:
        """Return the stream itself."""
        ...

    def __next__(self) -> Piece_co:
        """Wait for the next piece."""
        ...

    def close(self) -> None:
        """End the stream, from any thread; a caller waiting for a piece gets a `CloudError`."""
        ...


class Cloud(Protocol):
    """A connection to a cloud. Safe to share between threads and generations."""

    def info(self, request: Released[InfoRequest]) -> CloudInfo:
        """Ask which model the cloud serves."""
        ...

    def open(self, request: Released[OpenRequest]) -> CloudSession:
        """Start or resume a session without waiting for the server, so the first `verify` shares the round trip."""
        ...

    def sketch(self, request: Released[SketchRequest]) -> PieceStream[str]:
        """Stream an outline of 8 to 15 short points."""
        ...

    def answer(self, request: Released[AnswerRequest]) -> PieceStream[AnswerPiece]:
        """Stream the cloud's own answer."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
