"""How to serve: where, for whom, and how much at most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve.

    Attributes:
        host: name or address to listen on.
        port: 0 picks a free one.
        tls_cert: PEM of the certificate and its chain; None serves without TLS.
        tls_key: PEM of its private key.
        api_keys: file of keys (see `cloud_bridge.server.auth`); None lets everybody in.
        max_sessions: sessions that hold a place, parked ones included.
        max_top_k: the most log-probabilities a row.
        idle_seconds: after which a session may be evicted for a newcomer.
        session_timeout: seconds without a request after which a session is ended in any case.
        resume_seconds: how long the session of a broken stream waits for its device to come back.
        max_wait_seconds: newcomers are refused while requests are expected to wait for longer.
        max_cache_mb: megabytes (10^6 bytes) that all KV caches may take together; 0 sets no bound.
        sessions_per_key: sessions that one API key (without keys: one address) may have at once; 0 sets no limit.
        tokens_per_minute: that one API key (without keys: one address) may have scored or written; 0 sets no limit.
        drain_seconds: how long streams may go on once the server has been told to stop.
        metrics_host: where Prometheus metrics are served.
        metrics_port: 0 picks a free one; None serves no metrics.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_keys: Path | None = None
    max_sessions: int = 64
    max_top_k: int = 1024
    idle_seconds: float = 30.0
    session_timeout: float = 300.0
    resume_seconds: float = 30.0
    max_wait_seconds: float = 5.0
    max_cache_mb: int = 2048
    sessions_per_key: int = 0
    tokens_per_minute: int = 0
    drain_seconds: float = 10.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
