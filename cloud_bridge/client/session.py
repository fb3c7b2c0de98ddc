"""One generation's stream to the cloud: requests go out at once, replies resolve their futures in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

import grpc

from cloud_bridge.client.failures import cloud_error, copy_of, describe
from cloud_bridge.client.watchdog import Watchdog
from cloud_bridge.wire import Opened, decode_opened, decode_verified, encode_open, encode_verify
from edge_runtime.errors import CloudTimeoutError, CloudUnavailableError, CogenesisError, ProtocolError
from edge_runtime.messages import OpenRequest, VerifyRequest
from edge_runtime.privacy import Released
from edge_runtime.sparse import SparseLogProbs

Rows = Sequence[SparseLogProbs]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request whose reply has not come; `asked` holds what the reply must agree with."""

    released: Released[VerifyRequest]
    asked: VerifyRequest
    future: Future[Rows]
    since: float


class ScoreSession:
    """Implements `edge_runtime.cloud.CloudSession` over one bidirectional gRPC stream.

    A session ends with its first failure: all futures under way fail with it, and so does every later `verify`.
    Safe to use from several threads.
    """

    def __init__(
        self,
        call: grpc.StreamStreamMultiCallable,
        request: Released[OpenRequest],
        address: str,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        """Send `open`; does not wait.

        Raises:
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        self._address = address
        self._open_released = request
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._pending: deque[_Pending] = deque()
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._opened: Opened | None = None
        self._open_request: OpenRequest
        self._opening_since: float | None = time.monotonic()

        def encode(message: OpenRequest) -> bytes:
            self._open_request = message
            return encode_open(message)

        self._outgoing.put(request.leave(encode))
        self._stream = call(iter(self._outgoing.get, None), metadata=metadata)
        self._watchdog = Watchdog(timeout, self._oldest_wait, self._expire)
        self._reader = threading.Thread(target=self._read, name="cogenesis-replies", daemon=True)
        self._reader.start()

    def verify(self, request: Released[VerifyRequest]) -> Future[Rows]:
        """See `edge_runtime.cloud.CloudSession.verify`.

        Raises:
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        future: Future[Rows] = Future()
        future.set_running_or_notify_cancel()  # it was sent: it can't be cancelled any more
        asked: list[VerifyRequest] = []

        def encode(message: VerifyRequest) -> bytes:
            asked.append(message)
            return encode_verify(message)

        with self._lock:  # the order in the ledger, on the wire and of the futures is one
            if self._failure is not None:
                future.set_exception(copy_of(self._failure))
                return future
            payload = request.leave(encode)
            self._pending.append(_Pending(request, asked[0], future, time.monotonic()))
            self._outgoing.put(payload)
        return future

    def close(self) -> None:
        """See `edge_runtime.cloud.CloudSession.close`. Safe to call twice and from any thread."""
        self._fail(CloudUnavailableError(f"The session was closed: {self._address}. Open another one."))
        self._watchdog.stop()
        if threading.current_thread() not in (self._reader, self._watchdog.thread):  # a future's callback may close
            self._reader.join()
            self._watchdog.join()

    def __enter__(self) -> ScoreSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for data in self._stream:
                self._receive(data)
            failure: Exception = describe(CloudUnavailableError, self._address, "it ended the stream")
        except grpc.RpcError as error:
            failure = cloud_error(error, self._address)
        except CogenesisError as error:  # a malformed reply, or a ledger that can't be written
            failure = error
        self._fail(failure)
        self._watchdog.stop()

    def _receive(self, data: bytes) -> None:
        if self._opened is None:
            self._open_released.arrived(len(data))
            self._opened = decode_opened(data)
            self._opening_since = None
            return
        with self._lock:
            if not self._pending:
                raise ProtocolError(f"A reply came that nothing asked for: {self._address}. Update the cloud.")
            pending = self._pending[0]
        pending.released.arrived(len(data))
        asked = pending.asked
        rows = decode_verified(
            data,
            first_row=asked.first_row,
            rows=asked.keep + len(asked.tokens) + 1 - asked.first_row,
            vocab_size=self._opened.vocab_size,
            top_k=self._open_request.top_k,
            value_type=self._open_request.value_type,
        )
        with self._lock:
            if self._failure is not None:  # it failed meanwhile, and the future with it
                return
            self._pending.popleft()
        pending.future.set_result(rows)

    def _oldest_wait(self) -> float | None:
        with self._lock:
            waits = [since for since in (self._opening_since,) if since is not None]
            return min([*waits, self._pending[0].since] if self._pending else waits, default=None)

    def _expire(self) -> None:
        self._fail(describe(CloudTimeoutError, self._address))

    def _fail(self, failure: Exception) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
            pending = list(self._pending)
            self._pending.clear()
        self._outgoing.put(None)  # ends gRPC's sending thread
        self._stream.cancel()
        for one in pending:
            one.future.set_exception(copy_of(failure))
