"""The methods of the service: checks what comes in, keeps one engine thread busy, frees what a client leaves behind."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from cloud_bridge import wire
from cloud_bridge.server.auth import ApiKeys
from cloud_bridge.server.engine import Engine
from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.sessions import Session, SessionTable
from cloud_bridge.wire import REASON_KEY, SERVICE, Reason
from edge_runtime.cloud import CloudInfo
from edge_runtime.errors import ProtocolError
from edge_runtime.messages import OpenRequest, VerifyRequest

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Piece = TypeVar("Piece")
Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

_STATUS = {
    Reason.API_KEY: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TOKENIZER_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.EVICTED: grpc.StatusCode.ABORTED,
    Reason.STOPPING: grpc.StatusCode.UNAVAILABLE,
    Reason.CONTEXT_FULL: grpc.StatusCode.OUT_OF_RANGE,
    Reason.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


class BridgeService:
    """`cogenesis.v1.CloudBridge` over an engine.

    The engine runs in one thread of its own, one small job at a time (a `verify`, a token of an answer), so that
    clients take turns and the event loop never waits for it.
    """

    def __init__(self, engine: Engine[Any], sessions: SessionTable, keys: ApiKeys | None, max_top_k: int) -> None:
        """Serve `engine`; `keys` None lets everybody in; rows have at most `max_top_k` tokens."""
        self._engine = engine
        self._sessions = sessions
        self._keys = keys
        self._max_top_k = max_top_k
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cogenesis-engine")

    def handler(self) -> grpc.GenericRpcHandler:
        """Handlers of all methods, bytes in and bytes out."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Info": grpc.unary_unary_rpc_method_handler(self._guarded(self._info)),
                "Score": grpc.stream_stream_rpc_method_handler(self._guarded(self._score)),
                "Sketch": grpc.unary_stream_rpc_method_handler(self._guarded(self._sketch)),
                "Answer": grpc.unary_stream_rpc_method_handler(self._guarded(self._answer)),
            },
        )

    def close(self) -> None:
        """End the engine's thread, after the job it is at."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _info(self, _: bytes, __: grpc.aio.ServicerContext) -> bytes:
        engine = self._engine
        return wire.encode_info(
            CloudInfo(
                engine.model,
                engine.vocab_size,
                engine.context_length,
                engine.tokenizer_fingerprint,
                min(self._max_top_k, engine.vocab_size),
            )
        )

    async def _score(self, _: Any, context: grpc.aio.ServicerContext) -> None:
        opening = await self._next_frame(context)
        if not isinstance(opening, OpenRequest):
            raise RefusalError(Reason.BAD_REQUEST, "the first frame of a stream must be open")
        if opening.tokenizer_fingerprint != self._engine.tokenizer_fingerprint:
            raise RefusalError(Reason.TOKENIZER_MISMATCH, f"{self._engine.model} has another vocabulary")
        if opening.top_k > self._max_top_k:
            raise RefusalError(Reason.BAD_REQUEST, f"top_k {opening.top_k} is above {self._max_top_k}")
        await self._in_a_session(lambda session: self._converse(session, opening, context))

    async def _converse(self, session: Session, opening: OpenRequest, context: grpc.aio.ServicerContext) -> None:
        state = await self._run(self._engine.open, opening.instruction)
        try:
            prompt_tokens = self._engine.prompt_tokens(state)
            opened = wire.Opened(
                session.id, self._engine.model, self._engine.vocab_size, prompt_tokens, self._engine.context_length
            )
            await context.write(wire.encode_opened(opened))
            while (frame := await self._next_frame(context)) is not None:
                if not isinstance(frame, VerifyRequest):
                    raise RefusalError(Reason.BAD_REQUEST, "a stream has one open frame, the first")
                with self._sessions.work(session):
                    reply = await self._run(self._verify, state, opening, frame)
                await context.write(reply)
        finally:
            self._later(self._engine.close, state)

    def _verify(self, state: Any, opening: OpenRequest, request: VerifyRequest) -> bytes:
        rows = self._engine.score(
            state, keep=request.keep, tokens=request.tokens, first_row=request.first_row, top_k=opening.top_k
        )
        return wire.encode_verified(request.first_row, rows, opening.value_type)

    async def _next_frame(self, context: grpc.aio.ServicerContext) -> OpenRequest | VerifyRequest | None:
        data = await context.read()
        return None if data is grpc.aio.EOF else wire.decode_client_frame(data)

    async def _sketch(self, data: bytes, context: grpc.aio.ServicerContext) -> None:
        request = wire.decode_sketch_request(data)
        lines = self._engine.sketch(request.instruction)
        await self._in_a_session(lambda session: self._stream(session, lines, wire.encode_sketch_piece, context))

    async def _answer(self, data: bytes, context: grpc.aio.ServicerContext) -> None:
        pieces = self._engine.answer(wire.decode_answer_request(data))
        await self._in_a_session(lambda session: self._stream(session, pieces, wire.encode_answer_piece, context))

    async def _stream(
        self,
        session: Session,
        pieces: Generator[Piece, None, None],
        encode: Callable[[Piece], bytes],
        context: grpc.aio.ServicerContext,
    ) -> None:
        try:
            while True:
                with self._sessions.work(session):
                    piece = await self._run(next, pieces, None)
                if piece is None:
                    return
                await context.write(encode(piece))
        finally:
            self._later(pieces.close)  # behind the `next` that may still run

    async def _in_a_session(self, work: Callable[[Session], Awaitable[None]]) -> None:
        """Hold a session while `work` runs; ending it cancels `work`, wherever it waits."""

        def end() -> None:
            task.cancel()

        with self._sessions.admit(end) as session:
            task = asyncio.ensure_future(work(session))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if session.ended is not None and task.cancelled():
                    raise session.ended from None
                raise
            finally:
                task.cancel()

    async def _run(self, job: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._worker, job, *arguments)

    def _later(self, job: Callable[..., object], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the server has stopped, and its engine with it
            self._worker.submit(job, *arguments)

    def _guarded(self, method: Handler) -> Handler:
        """Check the key first, and turn what goes wrong into a status; nothing a user wrote gets into the log."""

        async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                self._authorise(context)
                return await method(request, context)
            except RefusalError as error:
                refusal = error
            except ProtocolError as error:
                refusal = RefusalError(Reason.BAD_REQUEST, str(error))
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                log.error("%s in %s:%s", type(error).__name__, where.filename, where.lineno)
                refusal = RefusalError(Reason.INTERNAL, "the server failed; its log says where")
            log.info("refused: %s", refusal.reason)
            await context.abort(
                _STATUS[refusal.reason], refusal.message, trailing_metadata=((REASON_KEY, refusal.reason.value),)
            )
            return None  # abort raises

        return guarded

    def _authorise(self, context: grpc.aio.ServicerContext) -> None:
        if self._keys is not None:
            header = dict(context.invocation_metadata() or ()).get("authorization")
            self._keys.check(header if isinstance(header, str) else None)
