"""Runs the server: address, TLS, start and graceful stop."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud_bridge.server.auth import ApiKeys
from cloud_bridge.server.engines.engine_thread import EngineThread
from cloud_bridge.server.engines.protocol import Engine
from cloud_bridge.server.errors import ServeError
from cloud_bridge.server.options import ServerOptions
from cloud_bridge.server.quotas import TokenQuota
from cloud_bridge.server.service import BridgeService
from cloud_bridge.server.session import Session
from cloud_bridge.server.sessions import SessionLimits, SessionTable
from cloud_bridge.server.telemetry import MetricsServer, Telemetry
from cloud_bridge.wire import MAX_MESSAGE_BYTES, SERVICE

__all__ = ["BridgeServer", "ServerOptions", "serving"]

_GOODBYE_SECONDS = 1.0
"""How long calls may take to end once they were told to."""
_QUIET_SECONDS = 2.0
"""A stopping server does not wait for a session that has asked for nothing for so long."""
_SWEEP_SECONDS = 0.25


class BridgeServer:
    """A server that is bound to its address; construct it inside a running event loop.

    Binding comes before loading a model, so that a port in use is known at once and not after minutes.

    Attributes:
        address: where it listens, `HOST:PORT`.
        metrics_address: where it serves metrics, None where it does not.
        sessions: all of them.
        telemetry: its metrics.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Read keys and certificate, and bind.

        Raises:
            ServeError: the keys or the certificate can't be read, or an address can't be bound.
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
        self.address = _bind(self._server, options, credentials)
        self.telemetry = Telemetry()
        self._metrics: MetricsServer | None = None
        if options.metrics_port is not None:
            self._metrics = MetricsServer(self.telemetry, options.metrics_host, options.metrics_port)
        self.metrics_address = self._metrics.address if self._metrics is not None else None
        self._thread = EngineThread()
        self._quota = TokenQuota(options.tokens_per_minute)
        self.sessions = SessionTable(_limits(options), self.telemetry, expected_wait=lambda: self._thread.expected_wait)
        self.telemetry.watch(
            active=lambda: self.sessions.active,
            parked=lambda: self.sessions.parked,
            cache_bytes=lambda: self.sessions.cache_bytes,
            waiting=lambda: self._thread.waiting,
        )
        self._health = health.aio.HealthServicer()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, engine: Engine[Any]) -> None:
        """Accept calls."""

        def release(session: Session) -> None:
            if session.state is not None:
                self._thread.later(engine.close, session.state)

        self.sessions.release = release
        self.sessions.drop_cache = lambda session: self._thread.later(engine.drop_cache, session.state)
        service = BridgeService(
            engine,
            self._thread,
            self.sessions,
            keys=self._keys,
            quota=self._quota,
            max_top_k=self._options.max_top_k,
            telemetry=self.telemetry,
        )
        self._server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._sweeper = asyncio.ensure_future(self._sweep())
        self.telemetry.say("serving", model=engine.model, address=self.address)

    async def drain(self) -> None:
        """Refuse newcomers, and wait until no session is in use any more, for `drain_seconds` at most."""
        seconds = self._options.drain_seconds
        self.telemetry.say("draining", sessions=self.sessions.active)
        await self._health.enter_graceful_shutdown()
        self.sessions.stop_admitting(max(seconds, 1.0))
        until = time.monotonic() + seconds
        while self.sessions.in_use(_QUIET_SECONDS) and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End what still runs, with a reason, and stop listening."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.sessions.stop_admitting(1.0)
        self.sessions.end_all()
        await self._server.stop(_GOODBYE_SECONDS)
        self._thread.close()
        if self._metrics is not None:
            self._metrics.close()
        self.telemetry.say("stopped")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sessions.sweep()
            self._quota.forget_full()


@contextmanager
def serving(engine: Engine[Any], options: ServerOptions) -> Iterator[BridgeServer]:
    """Serve from a thread of this process while the context lasts; what still runs then is ended at once.

    Raises:
        ServeError: as `BridgeServer`.
    """

    async def begin() -> BridgeServer:
        server = BridgeServer(options)
        await server.start(engine)
        return server

    loop = _background_loop()
    server = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()


@functools.cache
def _background_loop() -> asyncio.AbstractEventLoop:
    # One for the life of the process: gRPC has one poller a process, which loops in several threads would share.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="cogenesis-servers", daemon=True).start()
    return loop


def _bind(server: grpc.aio.Server, options: ServerOptions, credentials: grpc.ServerCredentials | None) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        if credentials is None:
            port = server.add_insecure_port(f"{host}:{options.port}")
        else:
            port = server.add_secure_port(f"{host}:{options.port}", credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ServeError(
            f"Can't listen on {host}:{options.port}: the port is in use, or the host is not this machine's. "
            "Choose another --port (0 picks a free one) or --host."
        )
    return f"{host}:{port}"


def _limits(options: ServerOptions) -> SessionLimits:
    return SessionLimits(
        max_sessions=options.max_sessions,
        idle_seconds=options.idle_seconds,
        session_timeout=options.session_timeout,
        resume_seconds=options.resume_seconds,
        max_wait_seconds=options.max_wait_seconds,
        max_cache_bytes=options.max_cache_mb * 1_000_000,
        sessions_per_key=options.sessions_per_key,
    )


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
