"""What the edge runtime needs of a cloud, as protocols; `cloud_bridge.client` implements them."""

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
    """What a cloud says of itself.

    Attributes:
        model: name of the model it serves.
        vocab_size: width of its logits.
        context_length: positions of its context.
        tokenizer_fingerprint: of its vocabulary (see `edge_runtime.text.tokenizer`).
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


@dataclass(frozen=True, eq=False, slots=True)
class Verified:
    """The cloud's reply to one `verify`.

    Attributes:
        rows: one for each that was asked for, in order; none where `superseded`.
        compute_seconds: that the cloud's model took.
        queue_seconds: that the request waited in the cloud for its turn.
        superseded: a later request, which the cloud had already, takes back tokens of this one.
    """

    rows: tuple[SparseLogProbs, ...]
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    superseded: bool = False


class CloudSession(Protocol):
    """One stream of a generation. All errors are `edge_runtime.errors.CloudError`s."""

    @property
    def id(self) -> str:
        """By which a later session can resume this one; "" until the cloud has answered."""
        ...

    @property
    def room(self) -> int | None:
        """Tokens of the view for which the cloud's context has room; None until the cloud has answered."""
        ...

    def verify(self, request: Released[VerifyRequest]) -> Future[Verified]:
        """Send at once and return; several may be under way.

        Replies come in the order of the requests. The first future also reports what was wrong with the opening. A
        session ends with its first failure: what is under way fails with it, and so does every later `verify`.
        """
        ...

    def close(self) -> None:
        """End the stream and free the cloud's session; what is still under way fails."""
        ...

    def abandon(self) -> None:
        """Break the stream off as dead; the cloud keeps the session for a while. The connection is not used again."""
        ...


Piece_co = TypeVar("Piece_co", covariant=True)


class PieceStream(Protocol[Piece_co]):
    """What a cloud writes, piece by piece."""

    def __iter__(self) -> Iterator[Piece_co]:
        """Itself."""
        ...

    def __next__(self) -> Piece_co:
        """Wait for the next piece."""
        ...

    def close(self) -> None:
        """End it, from any thread; who waits for a piece gets a `CloudError`."""
        ...


class Cloud(Protocol):
    """A connection to a cloud. Safe to share between threads and generations."""

    def info(self, request: Released[InfoRequest]) -> CloudInfo:
        """Ask which model is served."""
        ...

    def open(self, request: Released[OpenRequest]) -> CloudSession:
        """Start a session, or resume one; does not wait for the server, so that the first `verify` travels with it."""
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
