"""An answer in progress, and its result: text, tokens, finish reason, statistics and the ledger of messages."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edge_runtime.errors import CogenesisError
from edge_runtime.generation.cloud_link import LinkCounts
from edge_runtime.generation.options import Mode
from edge_runtime.generation.pace import Measured
from edge_runtime.machine.peak_memory import peak_rss_bytes
from edge_runtime.privacy.ledger import Ledger

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of an answer.

    Attributes:
        first_token_seconds: time from the call to the first token, including a sketch from the cloud.
        prefill_seconds: time from the finished prompt to the first token.
        decode_seconds: time from the first token to the last.
        tokens_per_second: tokens after the first, divided by `decode_seconds`.
        round_trips: replies of the cloud, including those to withdrawn drafts.
        bytes_up, bytes_down: message bytes to and from the cloud, without the framing of gRPC and TLS.
        fused_tokens: tokens chosen with a row of the cloud.
        drafted_tokens: tokens that the edge drafted ahead of the cloud's rows.
        compared_tokens: drafted tokens for which a row arrived.
        accepted_tokens: compared tokens that were the fused choice; their share of `compared_tokens` is the acceptance
            rate.
        server_seconds: compute time of the cloud's model.
        cloud_wait_seconds: time that the device spent only waiting for the cloud.
        interruptions: how often the cloud was lost or too slow, and the device went on alone.
        resumed: how often the cloud came back.
        peak_rss_bytes: largest resident memory of this process so far.
    """

    first_token_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float
    round_trips: int
    bytes_up: int
    bytes_down: int
    fused_tokens: int
    drafted_tokens: int
    compared_tokens: int
    accepted_tokens: int
    server_seconds: float
    cloud_wait_seconds: float
    interruptions: int
    resumed: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """A finished answer.

    Attributes:
        text: the answer, without stop texts.
        token_ids: its tokens, without the stop token.
        mode: the requested mode.
        finish_reason: "stop" (stop token or text), "length" (max_new_tokens), or "cancelled".
        prompt_tokens: length of the prompt on the device (in mode cloud: in the cloud).
        dropped_history: number of past texts that did not fit into the context.
        fused: for each token, whether it was chosen with a row of the cloud.
        outline: the cloud's sketch, in mode sketch.
        cloud_error: why the cloud was unavailable at the end of the answer, or "". `stats` counts interruptions from
            which the cloud came back.
        alone: number of tokens that the device decided although the schedule asks the cloud there, by reason: "cloud"
            (lost or too slow), "context" (the answer fills the cloud's context) or "policy" (the privacy policy shows
            the cloud no more of the answer).
        stats: statistics of the answer.
        ledger: every message sent and received.
    """

    text: str
    token_ids: tuple[int, ...]
    mode: Mode
    finish_reason: str
    prompt_tokens: int
    dropped_history: int
    fused: tuple[bool, ...]
    outline: str
    cloud_error: str
    alone: Mapping[str, int]
    stats: Stats
    ledger: Ledger = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `cogenesis generate` prints."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "mode": str(self.mode),
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "dropped_history": self.dropped_history,
            "fused": list(self.fused),
            "outline": self.outline,
            "cloud_error": self.cloud_error,
            "alone": dict(self.alone),
            "stats": {name: getattr(self.stats, name) for name in Stats.__slots__},
        }


@dataclass(slots=True)
class Progress:
    """The state of an answer so far; the writer fills it in."""

    mode: Mode
    ledger: Ledger
    token_ids: list[int] = field(default_factory=list)
    fused: list[bool] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    dropped_history: int = 0
    outline: str = ""
    cloud_error: str = ""
    link: LinkCounts = field(default_factory=LinkCounts)
    measured: Measured = field(default_factory=Measured)
    started: float = 0.0
    prompt_ready: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    bytes_before: tuple[int, int] = (0, 0)
    cancelled: Future[None] = field(default_factory=Future)

    def cancel(self) -> None:
        """End all waiting for the cloud; callable from any thread."""
        with suppress(InvalidStateError):
            self.cancelled.set_result(None)

    def begin(self) -> None:
        """Start the clock; bytes already in the ledger belong to earlier answers."""
        self.started = time.perf_counter()
        self.bytes_before = (self.ledger.bytes_moved("up"), self.ledger.bytes_moved("down"))

    def prompt_is_ready(self, tokens: int = 0, dropped_history: int = 0) -> None:
        """Record that the prompt is built, its length, and how many past texts did not fit into it."""
        self.prompt_tokens, self.dropped_history = tokens, dropped_history
        self.prompt_ready = time.perf_counter()

    def token(self, token_id: int, *, fused: bool) -> None:
        """Record one token and its time."""
        self.token_ids.append(token_id)
        self.fused.append(fused)
        self.mark_token()

    def piece(self, text: str) -> str:
        """Record a piece of the text and return it."""
        self.pieces.append(text)
        return text

    def mark_token(self) -> None:
        """Record that a token was chosen now."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token

    def result(self) -> AnswerResult:
        """Build the result from the current state."""
        decode = self.last_token - self.first_token
        up, down = self.bytes_before
        stats = Stats(
            first_token_seconds=max(self.first_token - self.started, 0.0),
            prefill_seconds=max(self.first_token - self.prompt_ready, 0.0),
            decode_seconds=decode,
            tokens_per_second=(len(self.token_ids) - 1) / decode if decode > 0 else 0.0,
            round_trips=self.link.round_trips,
            bytes_up=self.ledger.bytes_moved("up") - up,
            bytes_down=self.ledger.bytes_moved("down") - down,
            fused_tokens=sum(self.fused),
            drafted_tokens=self.measured.drafted,
            compared_tokens=self.measured.compared,
            accepted_tokens=self.measured.accepted,
            server_seconds=self.link.server_seconds,
            cloud_wait_seconds=self.link.wait_seconds,
            interruptions=self.link.interruptions,
            resumed=self.link.resumed,
            peak_rss_bytes=peak_rss_bytes(),
        )
        return AnswerResult(
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            mode=self.mode,
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens=self.prompt_tokens,
            dropped_history=self.dropped_history,
            fused=tuple(self.fused),
            outline=self.outline,
            cloud_error=self.cloud_error,
            alone={str(reason): count for reason, count in self.link.alone.items()},
            stats=stats,
            ledger=self.ledger,
        )


class Answer:
    """An answer in progress: iterate over it (`for` or `async for`) to get its text piece by piece, then read `result`.

    Writing starts when the first piece is requested. Pieces are whole characters; together they are `result.text`.
    """

    def __init__(self, writer: Generator[str, None, None], progress: Progress) -> None:
        self._writer = writer
        self._progress = progress
        self._lock = threading.RLock()  # a signal handler may close the answer that its own thread is writing
        self._next: asyncio.Task[str | None] | None = None
        self._result: AnswerResult | None = None

    @property
    def result(self) -> AnswerResult:
        """The finished answer.

        Raises:
            CogenesisError: the answer is not finished; iterate to its end, or call `finish` or `close`.
        """
        if self._result is None:
            raise CogenesisError("The answer is not finished: iterate to its end, or call finish() or close().")
        return self._result

    def finish(self) -> AnswerResult:
        """Write the rest of the answer and return the result."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Stop writing, from any thread; `result` then holds the text so far, with finish reason "cancelled".

        Waiting for the cloud stops immediately; a prefill or a token being computed is finished first.
        """
        self._progress.cancel()
        with self._lock:
            # A signal handler may interrupt `__next__` in its own thread, which then ends the writing.
            with suppress(ValueError):
                self._writer.close()
            self._settle()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._lock:
            try:
                return next(self._writer)
            except StopIteration:
                self._settle()
                raise

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        import asyncio

        # A caller that gives up waiting must not lose the piece: the next call waits for the same one.
        if self._next is None:
            self._next = asyncio.ensure_future(_in_thread(self._piece))
        piece = await asyncio.shield(self._next)
        self._next = None
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def afinish(self) -> AnswerResult:
        """`finish`, without blocking the event loop."""
        return await _in_thread(self.finish)

    async def aclose(self) -> None:
        """`close`, without blocking the event loop."""
        await _in_thread(self.close)

    def _piece(self) -> str | None:
        return next(self, None)

    def _settle(self) -> None:
        if self._result is None:
            self._result = self._progress.result()


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    # The work runs in C++ and on sockets, which release the GIL, so a thread keeps the event loop free. Imported here
    # because asyncio takes a tenth of a second to load.
    import asyncio

    return await asyncio.to_thread(function, *arguments)
