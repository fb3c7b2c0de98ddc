"""Runs the server: address, TLS, start and graceful stop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cloud_bridge.server.auth import ApiKeys
from cloud_bridge.server.engine import Engine
from cloud_bridge.server.errors import ServeError
from cloud_bridge.server.service import BridgeService
from cloud_bridge.server.sessions import SessionTable
from cloud_bridge.wire import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve.

    Attributes:
        host: name or address to listen on.
        port: 0 picks a free one.
        tls_cert: PEM of the certificate and its chain; None serves without TLS.
        tls_key: PEM of its private key.
        api_keys: file of keys (see `cloud_bridge.server.auth`); None lets everybody in.
        max_sessions: clients at once; each holds a KV cache.
        max_top_k: the most log-probabilities a row.
        idle_seconds: after which a session may be evicted for a new client.
        grace_seconds: how long a stopping server lets calls finish.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_keys: Path | None = None
    max_sessions: int = 16
    max_top_k: int = 1024
    idle_seconds: float = 30.0
    grace_seconds: float = 1.0


class BridgeServer:
    """A server that is bound to its address; construct it inside a running event loop.

    Binding comes before loading a model, so that a port in use is known at once and not after minutes.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Read keys and certificate, and bind.

        Raises:
            ServeError: the keys or the certificate can't be read, or the address can't be bound.
        """
        self._options = options
        self._keys = ApiKeys.read(options.api_keys) if options.api_keys is not None else None
        credentials = _credentials(options.tls_cert, options.tls_key)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # or a port in use would be shared with its user
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ]
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            if credentials is None:
                port = self._server.add_insecure_port(f"{host}:{options.port}")
            else:
                port = self._server.add_secure_port(f"{host}:{options.port}", credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise ServeError(
                f"Can't listen on {host}:{options.port}: the port is in use, or the host is not this machine's. "
                "Choose another --port (0 picks a free one) or --host."
            )
        self.address = f"{host}:{port}"
        self._service: BridgeService | None = None
        self.sessions = SessionTable(options.max_sessions, options.idle_seconds)

    async def start(self, engine: Engine[Any]) -> None:
        """Accept calls."""
        self._service = BridgeService(engine, self.sessions, self._keys, self._options.max_top_k)
        self._server.add_generic_rpc_handlers((self._service.handler(),))
        await self._server.start()
        log.info("serving %s on %s", engine.model, self.address)

    async def stop(self) -> None:
        """Accept nothing new, let calls finish for a moment, then end them with a reason."""
        grace = self._options.grace_seconds
        stopped = asyncio.ensure_future(self._server.stop(grace + 1))
        await asyncio.wait([stopped], timeout=grace)
        self.sessions.end_all()
        await stopped
        if self._service is not None:
            self._service.close()
        log.info("stopped")


@contextmanager
def serving(engine: Engine[Any], options: ServerOptions) -> Iterator[BridgeServer]:
    """Serve from a thread of this process while the context lasts.

    Raises:
        ServeError: as `BridgeServer`.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="cogenesis-server", daemon=True)
    thread.start()

    async def begin() -> BridgeServer:
        server = BridgeServer(options)
        await server.start(engine)
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(begin(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _credentials(cert: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ServeError("TLS needs a certificate and its key: give both --tls-cert and --tls-key.")
    import ssl

    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ServeError(f"A TLS file can't be read: {path} ({error.strerror}). Give another one.") from None
    try:
        # gRPC itself would only fail at the first handshake.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        cause = getattr(error, "reason", None) or "no PEM"
        raise ServeError(f"Certificate and key can't be used: {cert}, {key} ({cause}). Give a matching pair.") from None
    return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])


def _no_password() -> str:
    raise ValueError("the key is encrypted")
