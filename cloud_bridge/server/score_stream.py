"""One `Score` stream: reads requests ahead while the engine works, and answers them in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import grpc.aio

from cloud_bridge import wire
from cloud_bridge.server.engines.engine_thread import EngineThread
from cloud_bridge.server.engines.protocol import Engine
from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.quotas import TokenQuota
from cloud_bridge.server.session import Session
from cloud_bridge.server.sessions import SessionTable
from cloud_bridge.server.telemetry import Telemetry
from cloud_bridge.wire import Reason
from edge_runtime.cloud import Verified
from edge_runtime.errors import ProtocolError
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs
from edge_runtime.privacy.messages import VerifyRequest

MAX_UNDER_WAY = 32
"""Requests of one stream that were read and not yet answered."""
_BROKEN_SECONDS = 0.02
"""gRPC reports a broken stream as an end first, and cancels right after."""


@dataclass(eq=False, slots=True)
class _Request:
    """A `verify` that was read; `superseded` is set while it waits, and read by the engine's thread."""

    number: int
    heard: int
    verify: VerifyRequest
    arrived: float
    superseded: bool = False

    @property
    def end(self) -> int:
        """Length of the answer that it makes."""
        return self.verify.keep + len(self.verify.tokens)


class ScoreStream:
    """Answers the requests of one stream for its session."""

    def __init__(
        self,
        context: grpc.aio.ServicerContext,
        session: Session,
        form: RowFormat,
        *,
        heard: int,
        engine: Engine[Any],
        thread: EngineThread,
        sessions: SessionTable,
        quota: TokenQuota,
        telemetry: Telemetry,
    ) -> None:
        """Serve `session`, whose state is made, with rows of `form`; `heard` is the checksum of the opening."""
        self._context = context
        self._session = session
        self._form = form
        self._heard = heard
        self._engine = engine
        self._thread = thread
        self._sessions = sessions
        self._quota = quota
        self._telemetry = telemetry
        self._end = session.end
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[_Request | Exception] = asyncio.Queue()
        self._under_way: deque[_Request] = deque()
        self._taken_back: list[VerifyRequest] = []  # the engine has not seen them yet

    async def serve(self) -> None:
        """Serve until the device half-closes the stream; what it asked for is left undone then.

        Raises:
            RefusalError: a request can't be served.
            ProtocolError: a request is malformed.
            asyncio.CancelledError: the device vanished.
        """
        reader = asyncio.ensure_future(self._read())
        worker = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait({reader, worker}, return_when=asyncio.FIRST_COMPLETED)
            (worker if worker.done() else reader).result()
        finally:
            drop(reader)
            drop(worker)

    async def _read(self) -> None:
        number = 0
        while (data := await self._context.read()) is not grpc.aio.EOF:
            self._telemetry.came(len(data))
            try:
                self._accept(data, number)
            except (RefusalError, ProtocolError) as error:
                self._arrivals.put_nowait(error)  # in its turn, which ends the stream
                await asyncio.get_running_loop().create_future()
            number += 1
        await asyncio.sleep(_BROKEN_SECONDS)

    def _accept(self, data: bytes, number: int) -> None:
        self._heard = wire.said(data, self._heard)
        verify = wire.decode_client_frame(data)
        if not isinstance(verify, VerifyRequest):
            raise RefusalError(Reason.BAD_REQUEST, "a stream has one open frame, the first")
        if len(self._under_way) >= MAX_UNDER_WAY:
            raise RefusalError(Reason.BAD_REQUEST, f"more than {MAX_UNDER_WAY} requests are under way")
        for earlier in self._under_way:
            earlier.superseded |= verify.keep < earlier.end
        request = _Request(number, self._heard, verify, time.perf_counter())
        self._under_way.append(request)
        self._arrivals.put_nowait(request)
        self._touch()

    async def _work(self) -> None:
        while True:
            request = await self._arrivals.get()
            if isinstance(request, Exception):
                raise request
            if request.superseded and len(self._taken_back) < MAX_UNDER_WAY:
                self._taken_back.append(request.verify)
                verified = self._superseded(request, 0.0)
            else:
                self._quota.check(self._session.caller.account)
                verified = await self._compute(request)
            reply = wire.encode_verified(request.number, verified, self._form, request.heard)
            await self._context.write(reply)
            self._telemetry.went(len(reply))
            self._under_way.popleft()
            self._session.requests += 1
            self._session.rows += len(verified.rows)
            self._touch()

    def _superseded(self, request: _Request, compute: float) -> Verified:
        self._telemetry.superseded()
        return Verified((), compute, time.perf_counter() - request.arrived - compute, superseded=True)

    async def _compute(self, request: _Request) -> Verified:
        """Take turns with the other sessions until the request is done."""
        verify, session = request.verify, self._session
        work = self._parts(request)
        rows, compute, parts = await self._thread.run_parts(lambda: next(work), request.arrived)
        if not rows:
            return self._superseded(request, compute)
        queue = time.perf_counter() - request.arrived - compute
        self._quota.charge(session.caller.account, len(rows))
        self._telemetry.verified(
            session, tokens=len(verify.tokens), rows=len(rows), queue=queue, compute=compute, parts=parts
        )
        return Verified(tuple(rows), compute, queue)

    def _parts(self, request: _Request) -> Generator[list[SparseLogProbs] | None, None, None]:
        """In the engine's thread: the work for a request, a part at a time; in the end its rows, none if superseded."""
        session, verify = self._session, request.verify
        rows: list[SparseLogProbs] | None = None
        preparation: Generator[None, None, None] | None = None
        drops = session.cache_drops
        while rows is None:
            self._check_hold()
            while self._taken_back:
                self._score(self._taken_back[0], ())
                del self._taken_back[0]
            if preparation is None or drops != session.cache_drops:
                drops = session.cache_drops
                preparation = self._engine.prepare(
                    session.state, keep=verify.keep, tokens=verify.tokens, rows=verify.rows
                )
            if request.superseded:
                rows = self._score(verify, ())
            elif next(preparation, self) is self:
                rows = self._score(verify, verify.rows)
            size = self._engine.cache_bytes(session.state)
            self._loop.call_soon_threadsafe(self._sessions.cache_grew, session, size)
            yield rows

    def _score(self, verify: VerifyRequest, rows: tuple[int, ...]) -> list[SparseLogProbs]:
        state = self._session.state
        return self._engine.score(state, keep=verify.keep, tokens=verify.tokens, rows=rows, form=self._form)

    def _check_hold(self) -> None:
        # A stream that lost its session must not touch the engine's state: it belongs to another one now.
        if self._end is None or not self._sessions.holds(self._session, self._end):
            raise RefusalError(Reason.EVICTED, "another stream resumed the session")

    def _touch(self) -> None:
        if self._end is not None and self._sessions.holds(self._session, self._end):
            self._sessions.touch(self._session, working=bool(self._under_way))


def drop(task: asyncio.Task[Any]) -> None:
    """Cancel a task whose end nobody waits for; what it still raises is of no interest."""
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    task.cancel()
