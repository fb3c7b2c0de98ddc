"""Connects to a cloud: asks for its model, opens sessions, and streams sketches and answers."""

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
    """Create a client for a cloud; it connects at its first call.

    Args:
        address: `HOST:PORT`.
        api_key: sent with every call.
        tls: encrypt and check the cloud's certificate.
        tls_root_certificates: PEM of the authorities to trust instead of the default ones; implies `tls`.
        tls_server_name: name in the cloud's certificate if it differs from the host in `address`.
        connect_timeout: timeout in seconds for one attempt to connect.
        call_timeout: timeout in seconds for each reply: of `info`, of each `verify`, of each piece of a stream. A
            generation may continue without the cloud before this timeout.
        key_without_tls: allow sending the key unencrypted to another machine, where anyone on the way can read it.

    Raises:
        RequestError: an argument is not valid, or the key would be sent unencrypted.
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

    The client calls methods by path with raw bytes and without generated stubs. `Released.leave` provides the bytes and
    writes the ledger first, so nothing may be encoded after it. The client never retries, and gRPC's own backoff never
    delays a call: the caller decides whether and when to retry.
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
        """Ask which model the cloud serves.

        Raises:
            CloudError: the call failed; each cause has its own subclass.
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
        """Start or resume a session; does not wait for the reply, so the first `verify` needs no extra round trip.

        Raises:
            CloudUnavailableError: the client was closed.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        line = self._line()
        with self._changed:  # a session that ends immediately must wait until it is registered
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
            CloudError: the call failed, possibly during iteration; each cause has its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        return self._stream(lambda line: line.sketch, request, encode_sketch_request, decode_sketch_piece)

    def answer(self, request: Released[AnswerRequest]) -> Pieces[AnswerPiece]:
        """Stream the cloud's own answer.

        Raises:
            CloudError: the call failed, possibly during iteration; each cause has its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        return self._stream(lambda line: line.answer, request, encode_answer_request, decode_answer_piece)

    def close(self) -> None:
        """Close the connection; open sessions and streams fail.

        First this ends the sessions properly. That takes a round trip, or a second if the network is down.
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
        # gRPC raises ValueError if another thread has just closed the channel.
        raise CloudUnavailableError(f"The connection was closed: {self.address}. Connect again.") from None
