"""The connection to a cloud: asks for its model, opens sessions, streams sketches and answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc

from cloud_bridge.client.channel import bearer, channel_to
from cloud_bridge.client.failures import Peer
from cloud_bridge.client.pieces import Pieces
from cloud_bridge.client.route import Line, Route
from cloud_bridge.client.session import CLOSING_SECONDS, ScoreSession
from cloud_bridge.wire import (
    decode_answer_piece,
    decode_info,
    decode_sketch_piece,
    encode_answer_request,
    encode_info_request,
    encode_sketch_request,
)
from edge_runtime.cloud import AnswerPiece, CloudInfo
from edge_runtime.errors import CloudUnavailableError
from edge_runtime.privacy.gate import Released
from edge_runtime.privacy.messages import AnswerRequest, InfoRequest, OpenRequest, SketchRequest

Piece = TypeVar("Piece")


def connect(
    address: str,
    *,
    api_key: str | None = None,
    tls: bool = False,
    tls_root_certificates: bytes | None = None,
    tls_server_name: str | None = None,
    connect_timeout: float = 5.0,
    call_timeout: float = 60.0,
    key_without_tls: bool = False,
) -> CloudClient:
    """Connect to a cloud; the network is first touched by the first call.

    Args:
        address: `HOST:PORT`.
        api_key: sent with every call.
        tls: encrypt and check the cloud's certificate.
        tls_root_certificates: PEM of the authorities to trust instead of the usual ones; implies `tls`.
        tls_server_name: name in the cloud's certificate where it differs from the host in `address`.
        connect_timeout: seconds that one attempt to connect may take.
        call_timeout: seconds that each reply may take: of `info`, of each `verify`, of each piece of a stream. A
            generation need not wait for so long: it goes on alone when its own patience ends.
        key_without_tls: send the key to another machine in the clear, where anyone on the way can read it.

    Raises:
        RequestError: an argument is of the wrong form, or the key would travel in the clear.
    """
    open_channel = channel_to(
        address,
        tls=tls or tls_root_certificates is not None,
        tls_root_certificates=tls_root_certificates,
        tls_server_name=tls_server_name,
        connect_timeout=connect_timeout,
        secret=api_key is not None and not key_without_tls,
    )
    return CloudClient(Route(open_channel), address, bearer(api_key), call_timeout)


class CloudClient:
    """Implements `edge_runtime.cloud.Cloud` over gRPC; safe to share between threads.

    Methods are called by path with bytes on both sides, without generated stubs: the bytes to send come from
    `Released.leave`, which writes the ledger first, and nothing may be encoded after it. Nothing is sent twice, and a
    call never waits for a pause of gRPC's own: whether and when to try again is the caller's choice.
    """

    def __init__(self, route: Route, address: str, metadata: tuple[tuple[str, str], ...], call_timeout: float) -> None:
        """Use `connect` instead."""
        self.address = address
        self._route = route
        self._peer = Peer(address)
        self._metadata = metadata
        self._call_timeout = call_timeout
        self._sessions: set[ScoreSession] = set()
        self._changed = threading.Condition()

    def info(self, request: Released[InfoRequest]) -> CloudInfo:
        """Ask which model is served.

        Raises:
            CloudError: for each cause its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        line = self._line()
        try:
            payload = request.leave(encode_info_request)
            reply = line.info(payload, timeout=self._call_timeout, metadata=self._metadata)
            request.arrived(len(reply))
            return decode_info(reply)
        except grpc.RpcError as error:
            failure = self._peer.error(error)
            self._route.leave(line, failure)
            raise failure from None
        except ValueError:
            self._refuse()
        finally:
            self._route.give_back(line)

    def open(self, request: Released[OpenRequest]) -> ScoreSession:
        """Start a session, or resume one; does not wait, so that the first `verify` travels with it.

        Raises:
            CloudUnavailableError: the client was closed.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        line = self._line()
        with self._changed:  # a session that ends at once waits until it is known
            try:
                session = ScoreSession(
                    line.score,
                    request,
                    self._peer,
                    timeout=self._call_timeout,
                    metadata=self._metadata,
                    failed=partial(self._route.leave, line),
                    ended=partial(self._ended, line),
                )
            except ValueError:
                self._route.give_back(line)
                self._refuse()
            except BaseException:
                self._route.give_back(line)
                raise
            self._sessions.add(session)
        return session

    def sketch(self, request: Released[SketchRequest]) -> Pieces[str]:
        """Stream an outline of 8 to 15 short points; pieces are whole lines.

        Raises:
            CloudError: also while iterating, for each cause its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        return self._stream(lambda line: line.sketch, request, encode_sketch_request, decode_sketch_piece)

    def answer(self, request: Released[AnswerRequest]) -> Pieces[AnswerPiece]:
        """Stream the cloud's own answer.

        Raises:
            CloudError: also while iterating, for each cause its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        return self._stream(lambda line: line.answer, request, encode_answer_request, decode_answer_piece)

    def close(self) -> None:
        """Close the connection; sessions and streams under way fail.

        Sessions are ended in order first, which takes a round trip, or a second where the network is gone.
        """
        with self._changed:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        until = time.monotonic() + CLOSING_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: not self._sessions, timeout=until - time.monotonic())
        self._route.close()

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self,
        method: Callable[[Line], grpc.UnaryStreamMultiCallable],
        request: Released[Any],
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Piece],
    ) -> Pieces[Piece]:
        line = self._line()
        try:
            payload = request.leave(encode)
            call = method(line)(payload, metadata=self._metadata)
        except ValueError:
            self._route.give_back(line)
            self._refuse()
        except BaseException:
            self._route.give_back(line)
            raise
        return Pieces(
            call,
            request,
            decode,
            self._peer,
            timeout=self._call_timeout,
            failed=partial(self._route.leave, line),
            ended=partial(self._route.give_back, line),
        )

    def _ended(self, line: Line, session: ScoreSession) -> None:
        with self._changed:
            self._sessions.discard(session)
            self._changed.notify_all()
        self._route.give_back(line)

    def _line(self) -> Line:
        line = self._route.take()
        if line is None:
            self._refuse()
        return line

    def _refuse(self) -> NoReturn:
        # gRPC raises ValueError where another thread closed the channel a moment ago.
        raise CloudUnavailableError(f"The connection was closed: {self.address}. Connect again.") from None
