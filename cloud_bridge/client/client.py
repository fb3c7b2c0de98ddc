"""The connection to a cloud: asks for its model, opens sessions, streams sketches and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from cloud_bridge.client.channel import bearer, open_channel
from cloud_bridge.client.failures import cloud_error
from cloud_bridge.client.pieces import Pieces
from cloud_bridge.client.session import ScoreSession
from cloud_bridge.wire import (
    decode_answer_piece,
    decode_info,
    decode_sketch_piece,
    encode_answer_request,
    encode_info_request,
    encode_sketch_request,
    method_path,
)
from edge_runtime.cloud import AnswerPiece, CloudInfo
from edge_runtime.errors import CloudUnavailableError
from edge_runtime.messages import AnswerRequest, InfoRequest, OpenRequest, SketchRequest
from edge_runtime.privacy import Released

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
) -> CloudClient:
    """Connect to a cloud; the network is first touched by the first call.

    Args:
        address: `HOST:PORT`.
        api_key: sent with every call; without TLS anyone on the way can read it.
        tls: encrypt and check the cloud's certificate.
        tls_root_certificates: PEM of the authorities to trust instead of the usual ones; implies `tls`.
        tls_server_name: name in the cloud's certificate where it differs from the host in `address`.
        connect_timeout: seconds that one attempt to connect may take.
        call_timeout: seconds that each reply may take: of `info`, of each `verify`, of each piece of a stream.

    Raises:
        RequestError: an argument is of the wrong form.
    """
    channel = open_channel(
        address,
        tls=tls or tls_root_certificates is not None,
        tls_root_certificates=tls_root_certificates,
        tls_server_name=tls_server_name,
        connect_timeout=connect_timeout,
    )
    return CloudClient(channel, address, bearer(api_key), call_timeout)


class CloudClient:
    """Implements `edge_runtime.cloud.Cloud` over gRPC; safe to share between threads.

    Methods are called by path with bytes on both sides, without generated stubs: the bytes to send come from
    `Released.leave`, which writes the ledger first, and nothing may be encoded after it.
    """

    def __init__(
        self, channel: grpc.Channel, address: str, metadata: tuple[tuple[str, str], ...], call_timeout: float
    ) -> None:
        """Use `connect` instead."""
        self.address = address
        self._channel = channel
        self._metadata = metadata
        self._call_timeout = call_timeout
        self._info = channel.unary_unary(method_path("Info"))
        self._score = channel.stream_stream(method_path("Score"))
        self._sketch = channel.unary_stream(method_path("Sketch"))
        self._answer = channel.unary_stream(method_path("Answer"))
        self._closed = False

    def info(self, request: Released[InfoRequest]) -> CloudInfo:
        """Ask which model is served.

        Raises:
            CloudError: for each cause its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
        """
        self._check_open()
        payload = request.leave(encode_info_request)
        try:
            reply = self._info(payload, timeout=self._call_timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise cloud_error(error, self.address) from None
        request.arrived(len(reply))
        return decode_info(reply)

    def open(self, request: Released[OpenRequest]) -> ScoreSession:
        """Start a session; does not wait, so that the first `verify` travels with it.

        Raises:
            CloudUnavailableError: the client was closed.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        self._check_open()
        return ScoreSession(self._score, request, self.address, self._call_timeout, self._metadata)

    def sketch(self, request: Released[SketchRequest]) -> Iterator[str]:
        """Stream an outline of 8 to 15 short points; pieces are whole lines.

        Raises:
            CloudError: also while iterating, for each cause its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        return self._stream(self._sketch, request, encode_sketch_request, decode_sketch_piece)

    def answer(self, request: Released[AnswerRequest]) -> Iterator[AnswerPiece]:
        """Stream the cloud's own answer.

        Raises:
            CloudError: also while iterating, for each cause its own subclass.
            LedgerError: the ledger can't be written; nothing was sent.
            RequestError: the request can't be encoded; nothing was sent.
        """
        return self._stream(self._answer, request, encode_answer_request, decode_answer_piece)

    def close(self) -> None:
        """Close the connection; sessions and streams under way fail."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self,
        method: grpc.UnaryStreamMultiCallable,
        request: Released[Any],
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Piece],
    ) -> Pieces[Piece]:
        self._check_open()
        payload = request.leave(encode)
        call = method(payload, metadata=self._metadata)
        return Pieces(call, request, decode, self.address, self._call_timeout)

    def _check_open(self) -> None:
        if self._closed:
            raise CloudUnavailableError(f"The connection was closed: {self.address}. Connect again.")
