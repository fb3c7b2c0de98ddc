"""One generation's stream to the cloud: requests go out at once, replies resolve their futures in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

import grpc

from cloud_bridge.client.failures import Peer, copy_of
from cloud_bridge.client.watchdog import Watchdog
from cloud_bridge.wire import Opened, decode_opened, decode_verified, encode_open, encode_verify, said
from edge_runtime.cloud import Verified
from edge_runtime.errors import CloudTimeoutError, CloudUnavailableError, CogenesisError, ProtocolError
from edge_runtime.privacy.gate import Released
from edge_runtime.privacy.messages import OpenRequest, VerifyRequest

CLOSING_SECONDS = 1.0
"""How long the cloud has to end a stream that the device is done with, before the device breaks it."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request whose reply has not come; `asked` holds what the reply must agree with."""

    released: Released[VerifyRequest]
    asked: VerifyRequest
    future: Future[Verified]
    since: float
    said: int


class ScoreSession:
    """Implements `edge_runtime.cloud.CloudSession` over one bidirectional gRPC stream.

    A session ends with its first failure: all futures under way fail with it, and so does every later `verify`. The
    stream is then broken off, which leaves the session in the cloud for a while to be resumed; `close` ends it in
    order, which frees it there at once. Safe to use from several threads; nothing here waits for the network.
    """

    def __init__(
        self,
        call: grpc.StreamStreamMultiCallable,
        request: Released[OpenRequest],
        peer: Peer,
        *,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
        failed: Callable[[Exception], None],
        ended: Callable[[ScoreSession], None],
    ) -> None:
        """Send `open`.

        Args:
            call: the method of the channel.
            request: what to open.
            peer: who is called.
            timeout: seconds that each reply may take.
            metadata: of the call.
            failed: told what the session failed with, before anybody else is; where it was closed, only if the cloud
                does not end the stream.
            ended: told once that nothing of the session is left, in a thread of the session.

        Raises:
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        self._peer = peer
        self._open_released = request
        self._failed = failed
        self._ended = ended
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._pending: deque[_Pending] = deque()
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._opened: Opened | None = None
        self._open_request: OpenRequest
        self._answered = 0
        self._opening_since = time.monotonic()

        def encode(message: OpenRequest) -> bytes:
            self._open_request = message
            return encode_open(message)

        payload = request.leave(encode)
        self._said = said(payload)
        self._outgoing.put(payload)
        # gRPC's own thread takes from the queue: whoever sends does not wait for flow control.
        self._stream = call(iter(self._outgoing.get, None), metadata=metadata)
        self._watchdog = Watchdog(timeout, self._oldest_wait, self._expire)
        try:
            threading.Thread(target=self._read, name="cogenesis-replies", daemon=True).start()
        except BaseException:  # no thread to be had, or an interrupt: leave nothing behind
            self._outgoing.put(None)
            self._stream.cancel()
            self._watchdog.stop()
            raise

    @property
    def id(self) -> str:
        """See `edge_runtime.cloud.CloudSession.id`."""
        return self._opened.session_id if self._opened is not None else ""

    @property
    def room(self) -> int | None:
        """See `edge_runtime.cloud.CloudSession.room`."""
        opened = self._opened
        return None if opened is None else opened.context_length - opened.prompt_tokens

    def verify(self, request: Released[VerifyRequest]) -> Future[Verified]:
        """See `edge_runtime.cloud.CloudSession.verify`.

        Raises:
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        future: Future[Verified] = Future()
        future.set_running_or_notify_cancel()  # it was sent: it can't be cancelled any more
        asked: list[VerifyRequest] = []

        def encode(message: VerifyRequest) -> bytes:
            asked.append(message)
            return encode_verify(message)

        with self._lock:  # the order in the ledger, on the wire and of the futures is one
            if self._failure is None:
                payload = request.leave(encode)
                self._said = said(payload, self._said)
                self._pending.append(_Pending(request, asked[0], future, time.monotonic(), self._said))
                self._outgoing.put(payload)
                return future
        future.set_exception(copy_of(self._failure))
        return future

    def close(self) -> None:
        """See `edge_runtime.cloud.CloudSession.close`. Safe to call twice and from any thread."""
        self._fail(CloudUnavailableError(f"The session was closed: {self._peer.address}. Open another one."), True)

    def abandon(self) -> None:
        """See `edge_runtime.cloud.CloudSession.abandon`. Safe to call twice and from any thread."""
        self._fail(self._peer.describe(CloudTimeoutError))

    def __enter__(self) -> ScoreSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for data in self._stream:
                self._receive(data)
            failure: Exception = self._peer.describe(CloudUnavailableError, "it ended the stream")
        except grpc.RpcError as error:
            failure = self._peer.error(error, answered=self._answered > 0)
        except ProtocolError as error:
            failure = self._peer.damaged(error)
        except CogenesisError as error:  # a ledger that can't be written
            failure = error
        except Exception as error:  # whoever waits must hear of it
            failure = self._peer.describe(CloudUnavailableError, type(error).__name__)
        self._fail(failure)
        self._watchdog.stop()
        self._ended(self)

    def _receive(self, data: bytes) -> None:
        if self._opened is None:
            self._open_released.arrived(len(data))
            self._opened = decode_opened(data)
            return
        with self._lock:
            if not self._pending:
                raise ProtocolError(f"A reply came that nothing asked for: {self._peer.address}. Update the cloud.")
            pending = self._pending[0]
        pending.released.arrived(len(data))
        verified = decode_verified(
            data,
            number=self._answered,
            count=len(pending.asked.rows),
            vocab_size=self._opened.vocab_size,
            form=self._open_request.rows,
            heard=pending.said,
        )
        self._answered += 1
        self._peer.proven = True
        with self._lock:
            self._pending.popleft()
            failed = self._failure is not None  # meanwhile, and the future with it
        if not failed:
            pending.future.set_result(verified)

    def _oldest_wait(self) -> float | None:
        with self._lock:
            if self._failure is not None:
                return None
            if self._opened is None:
                return self._opening_since
            return self._pending[0].since if self._pending else None

    def _expire(self) -> None:
        late = self._peer.describe(CloudTimeoutError)
        if self._failure is not None:  # a cloud that does not end a stream may be gone: others take another connection
            self._failed(late)
        self._fail(late)
        self._stream.cancel()

    def _fail(self, failure: Exception, closing: bool = False) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
            unanswered = list(self._pending)  # they stay: a reply that still comes belongs into the ledger
        if closing:
            self._watchdog.expire_within(CLOSING_SECONDS)
        else:
            self._failed(failure)  # first: the line must not be given back as a good one
            self._stream.cancel()
        self._outgoing.put(None)  # half-closes the stream, and ends gRPC's sending thread
        for one in unanswered:
            one.future.set_exception(copy_of(failure))
