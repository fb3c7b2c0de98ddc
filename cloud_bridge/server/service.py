"""The methods of the service: checks what comes in, gives it a session, and frees what a client leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio

from cloud_bridge import wire
from cloud_bridge.server.auth import ApiKeys
from cloud_bridge.server.engines.engine_thread import EngineThread
from cloud_bridge.server.engines.protocol import Engine
from cloud_bridge.server.engines.sketch import OUTLINE_TOKENS
from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.quotas import Caller, TokenQuota
from cloud_bridge.server.score_stream import ScoreStream, drop
from cloud_bridge.server.session import End, Session
from cloud_bridge.server.sessions import SessionTable
from cloud_bridge.server.telemetry import Telemetry
from cloud_bridge.wire import REASON_KEY, RETRY_AFTER_KEY, SERVICE, Reason
from edge_runtime.cloud import AnswerPiece, CloudInfo
from edge_runtime.errors import ProtocolError
from edge_runtime.privacy.messages import OpenRequest

Piece = TypeVar("Piece")
Handler = Callable[[Any, grpc.aio.ServicerContext, Caller], Awaitable[Any]]

OPEN_SECONDS = 20.0
"""A stream whose first frame does not come within this is ended: it holds a connection for nothing."""

_BROKEN = (asyncio.CancelledError, grpc.aio.InternalError)
"""How gRPC tells that a stream broke: while it waits, and while it writes."""

_STATUS = {
    Reason.API_KEY: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TOKENIZER_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.QUOTA: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.EVICTED: grpc.StatusCode.ABORTED,
    Reason.STOPPING: grpc.StatusCode.UNAVAILABLE,
    Reason.CONTEXT_FULL: grpc.StatusCode.OUT_OF_RANGE,
    Reason.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


class BridgeService:
    """`cogenesis.v1.CloudBridge` over an engine.

    The engine runs in one thread of its own, one small job at a time (a part of a prompt, a `verify`, a token of an
    answer), so that clients take turns and the event loop never waits for it.
    """

    def __init__(
        self,
        engine: Engine[Any],
        thread: EngineThread,
        sessions: SessionTable,
        *,
        keys: ApiKeys | None,
        quota: TokenQuota,
        max_top_k: int,
        telemetry: Telemetry,
    ) -> None:
        """Serve `engine`; `keys` None lets everybody in; rows have at most `max_top_k` tokens."""
        self._engine = engine
        self._thread = thread
        self._sessions = sessions
        self._keys = keys
        self._quota = quota
        self._max_top_k = max_top_k
        self._telemetry = telemetry

    def handler(self) -> grpc.GenericRpcHandler:
        """Handlers of all methods, bytes in and bytes out."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Info": grpc.unary_unary_rpc_method_handler(self._guarded("Info", self._info)),
                "Score": grpc.stream_stream_rpc_method_handler(self._guarded("Score", self._score)),
                "Sketch": grpc.unary_stream_rpc_method_handler(self._guarded("Sketch", self._sketch)),
                "Answer": grpc.unary_stream_rpc_method_handler(self._guarded("Answer", self._answer)),
            },
        )

    async def _info(self, data: bytes, _: grpc.aio.ServicerContext, __: Caller) -> bytes:
        engine = self._engine
        self._telemetry.came(len(data))
        reply = wire.encode_info(
            CloudInfo(
                engine.model,
                engine.vocab_size,
                engine.context_length,
                engine.tokenizer_fingerprint,
                min(self._max_top_k, engine.vocab_size),
            )
        )
        self._telemetry.went(len(reply))
        return reply

    # --- Score --------------------------------------------------------------------------------------------------------

    async def _score(self, _: Any, context: grpc.aio.ServicerContext, caller: Caller) -> None:
        data = await self._first_frame(context)
        if data is None:
            return
        opening = self._opening(data)
        self._quota.check(caller.account)
        topic = hashlib.sha256(opening.instruction.encode()).digest()

        def enter(end: End) -> tuple[Session, bool]:
            session = self._sessions.resume(opening.resume, caller, end, topic=topic) if opening.resume else None
            if session is not None:
                return session, True
            return self._sessions.open(caller, "Score", end, topic=topic), False

        with _Holding(self._sessions, enter) as holding:
            await holding.last(self._converse(holding.session, holding.resumed, opening, wire.said(data), context))

    async def _first_frame(self, context: grpc.aio.ServicerContext) -> bytes | None:
        try:
            data = await asyncio.wait_for(context.read(), OPEN_SECONDS)
        except TimeoutError:
            raise RefusalError(Reason.BAD_REQUEST, f"no frame came for {OPEN_SECONDS:g} seconds") from None
        if data is grpc.aio.EOF:
            return None
        self._telemetry.came(len(data))
        return bytes(data)

    def _opening(self, data: bytes) -> OpenRequest:
        opening = wire.decode_client_frame(data)
        if not isinstance(opening, OpenRequest):
            raise RefusalError(Reason.BAD_REQUEST, "the first frame of a stream must be open")
        if opening.tokenizer_fingerprint != self._engine.tokenizer_fingerprint:
            raise RefusalError(Reason.TOKENIZER_MISMATCH, f"{self._engine.model} has another vocabulary")
        if opening.rows.top_k > self._max_top_k:
            raise RefusalError(Reason.BAD_REQUEST, f"top_k {opening.rows.top_k} is above {self._max_top_k}")
        return opening

    async def _converse(
        self, session: Session, resumed: bool, opening: OpenRequest, heard: int, context: grpc.aio.ServicerContext
    ) -> None:
        engine = self._engine
        if not resumed:
            session.state, _ = await self._thread.run(engine.open, opening.instruction)
        prompt_tokens = engine.prompt_tokens(session.state)
        if not resumed:
            self._quota.charge(session.caller.account, prompt_tokens)
            self._telemetry.opened(session, prompt_tokens=prompt_tokens)
        opened = wire.encode_opened(
            wire.Opened(
                session.id, engine.model, engine.vocab_size, prompt_tokens, engine.context_length, resumed=resumed
            )
        )
        await context.write(opened)
        self._telemetry.went(len(opened))
        stream = ScoreStream(
            context,
            session,
            opening.rows,
            heard=heard,
            engine=engine,
            thread=self._thread,
            sessions=self._sessions,
            quota=self._quota,
            telemetry=self._telemetry,
        )
        await stream.serve()

    # --- Sketch and Answer --------------------------------------------------------------------------------------------

    async def _sketch(self, data: bytes, context: grpc.aio.ServicerContext, caller: Caller) -> None:
        request = wire.decode_sketch_request(data)
        lines = self._engine.sketch(request.instruction)
        self._telemetry.came(len(data))
        self._quota.check(caller.account)
        self._quota.charge(caller.account, OUTLINE_TOKENS)
        await self._write("Sketch", lines, wire.encode_sketch_piece, context, caller)

    async def _answer(self, data: bytes, context: grpc.aio.ServicerContext, caller: Caller) -> None:
        pieces = self._engine.answer(wire.decode_answer_request(data))
        self._telemetry.came(len(data))
        self._quota.check(caller.account)

        def encode(piece: AnswerPiece) -> bytes:
            self._quota.charge(caller.account, len(piece.token_ids) + piece.prompt_tokens)
            return wire.encode_answer_piece(piece)

        await self._write("Answer", pieces, encode, context, caller)

    async def _write(
        self,
        method: str,
        pieces: Generator[Piece | None, None, None],
        encode: Callable[[Piece], bytes],
        context: grpc.aio.ServicerContext,
        caller: Caller,
    ) -> None:
        async def write() -> None:
            self._telemetry.opened(holding.session)
            try:
                while True:
                    self._sessions.touch(holding.session, working=True)
                    piece, _ = await self._thread.run(next, pieces, self)
                    self._sessions.touch(holding.session, working=False)
                    if piece is self:
                        return
                    if piece is not None:
                        data = encode(piece)
                        await context.write(data)
                        self._telemetry.went(len(data))
            finally:
                self._thread.later(pieces.close)  # behind the `next` that may still run

        with _Holding(self._sessions, lambda end: (self._sessions.open(caller, method, end), False)) as holding:
            await holding.last(write())

    # --- all methods --------------------------------------------------------------------------------------------------

    def _guarded(self, method: str, handle: Handler) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
        """Check the key first, and turn what goes wrong into a status; nothing a user wrote gets into the log."""

        async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
            name = ""
            try:
                caller = self._caller(context)
                name = caller.name
                return await handle(request, context, caller)
            except RefusalError as error:
                refusal = error
            except ProtocolError as error:
                refusal = RefusalError(Reason.BAD_REQUEST, str(error))
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # it broke while a reply was written; nobody is there to hear
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self._telemetry.fault(error, where.filename, where.lineno)
                refusal = RefusalError(Reason.INTERNAL, "the server failed; its log says where")
            self._telemetry.refused(method, refusal.reason, name)
            await context.abort(_STATUS[refusal.reason], refusal.message, trailing_metadata=_trailer(refusal))
            return None  # abort raises

        return guarded

    def _caller(self, context: grpc.aio.ServicerContext) -> Caller:
        if self._keys is None:
            return Caller("", _peer_host(context.peer()))
        header = dict(context.invocation_metadata() or ()).get("authorization")
        name = self._keys.check(header if isinstance(header, str) else None)
        return Caller(name, name)


class _Holding(contextlib.AbstractContextManager["_Holding"]):
    """A stream's hold on its session: what ends the one ends the other."""

    def __init__(self, sessions: SessionTable, enter: Callable[[End], tuple[Session, bool]]) -> None:
        """Enter a session; the stream can be ended from then on."""
        self._sessions = sessions
        self._ending: asyncio.Future[RefusalError] = asyncio.get_running_loop().create_future()
        self.session, self.resumed = enter(self._end)

    def _end(self, reason: RefusalError) -> None:
        if not self._ending.done():
            self._ending.set_result(reason)

    async def last(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; being ended cancels it, wherever it waits.

        Raises:
            RefusalError: the server ended it.
        """
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._ending}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done():
                raise self._ending.result()
            task.result()
        finally:
            drop(task)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._sessions.holds(self.session, self._end):
            return  # ended, or taken over
        if isinstance(error, _BROKEN) or _quota_used_up(error):
            self._sessions.park(self.session)
        else:
            self._sessions.close(self.session, "done" if error is None else "failed")


def _quota_used_up(error: BaseException | None) -> bool:
    return isinstance(error, RefusalError) and error.reason is Reason.QUOTA


def _trailer(refusal: RefusalError) -> tuple[tuple[str, str], ...]:
    trailer = ((REASON_KEY, refusal.reason.value),)
    if refusal.retry_after is None:
        return trailer
    return (*trailer, (RETRY_AFTER_KEY, str(max(round(refusal.retry_after * 1000), 1))))


def _peer_host(peer: str) -> str:
    """`192.0.2.1` of `ipv4:192.0.2.1:50000`, `[::1]` of `ipv6:%5B::1%5D:50000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0]
