"""Defines the server's options: addresses, credentials and limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The server's options.

    Attributes:
        host: name or address to listen on.
        port: 0 picks a free one.
        tls_cert: PEM of the certificate and its chain; None serves without TLS.
        tls_key: PEM of its private key.
        api_keys: file of keys (see `cloud_bridge.server.auth`); None accepts every client.
        max_sessions: maximum number of sessions, including parked ones.
        max_top_k: maximum number of log-probabilities per row.
        idle_seconds: idle time after which a session may be evicted for a new one.
        session_timeout: idle time in seconds after which a session always ends.
        resume_seconds: time to resume the session of a broken stream.
        max_wait_seconds: new sessions are rejected while the expected wait of requests is longer than this.
        max_cache_mb: maximum total size of all KV caches in megabytes (10^6 bytes); 0 sets no limit.
        sessions_per_key: maximum concurrent sessions per API key (without keys: per address); 0 sets no limit.
        tokens_per_minute: maximum tokens scored or written per API key (without keys: per address); 0 sets no limit.
        drain_seconds: time for streams to finish after the server is told to stop.
        metrics_host: name or address to serve Prometheus metrics on.
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
