"""What the operator sees: Prometheus metrics and log events, never a session's id, a key, text or tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cloud_bridge.server.errors import ServeError

if TYPE_CHECKING:
    from cloud_bridge.server.session import Session
    from cloud_bridge.wire import Reason

log = logging.getLogger("cloud_bridge.server")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """One server's metrics, in a registry of their own, and its log events."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"cogenesis_{name}", words, labels, registry=self.registry)

        self._sessions = Gauge("cogenesis_sessions", "Sessions now.", ["state"], registry=self.registry)
        self._cache = Gauge("cogenesis_cache_bytes", "Memory of all KV caches.", registry=self.registry)
        self._waiting = Gauge(
            "cogenesis_engine_jobs", "Jobs of the engine, under way or waiting.", registry=self.registry
        )
        self._opened = counter("sessions_opened", "Sessions that were opened.", "method")
        self._resumed = counter("sessions_resumed", "Sessions that a new stream took over.")
        self._parked = counter("sessions_parked", "Sessions whose stream broke.")
        self._closed = counter("sessions_closed", "Sessions that ended.", "cause")
        self._refused = counter("refusals", "Calls that ended with a reason.", "reason")
        self._dropped = counter("cache_drops", "KV caches that made room for others.")
        self._seconds = Histogram(
            "cogenesis_verify_seconds",
            "What requests of streams took: waiting for their turn, and in the model.",
            ["part"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = counter("rows", "Rows that were sent.")
        self._tokens = counter("tokens", "Tokens that came to be verified.")
        self._superseded = counter("superseded", "Requests that a later one made needless.")
        self._jobs = counter("engine_parts", "Parts of the engine's work for streams.")
        self._bytes = counter("bytes", "Bytes of messages, without those of gRPC.", "direction")
        for part in ("queue", "compute"):
            self._seconds.labels(part)
        for direction in ("in", "out"):
            self._bytes.labels(direction)

    def watch(
        self,
        *,
        active: Callable[[], int],
        parked: Callable[[], int],
        cache_bytes: Callable[[], int],
        waiting: Callable[[], int],
    ) -> None:
        """Say where the current values come from; they are asked for from another thread."""
        self._sessions.labels("active").set_function(active)
        self._sessions.labels("parked").set_function(parked)
        self._cache.set_function(cache_bytes)
        self._waiting.set_function(waiting)

    def opened(self, session: Session, **counts: int) -> None:
        """A session began."""
        self._opened.labels(session.method).inc()
        _event("opened", session, method=session.method, **counts)

    def resumed(self, session: Session) -> None:
        """A new stream goes on with a session."""
        self._resumed.inc()
        _event("resumed", session)

    def parked(self, session: Session) -> None:
        """A session's stream broke."""
        self._parked.inc()
        _event("parked", session)

    def closed(self, session: Session, cause: str, seconds: float) -> None:
        """A session ended."""
        self._closed.labels(cause).inc()
        _event("closed", session, cause=cause, seconds=round(seconds, 3), requests=session.requests, rows=session.rows)

    def refused(self, method: str, reason: Reason, key: str) -> None:
        """A call ended with a reason."""
        self._refused.labels(reason.value).inc()
        log.info("refused", extra={"fields": {"method": method, "reason": reason.value, **_named(key)}})

    def cache_dropped(self, session: Session) -> None:
        """A cache made room for others."""
        self._dropped.inc()
        _event("cache dropped", session, bytes=session.cache_bytes)

    def verified(self, session: Session, *, tokens: int, rows: int, queue: float, compute: float, parts: int) -> None:
        """A request was answered with rows."""
        self._seconds.labels("queue").observe(queue)
        self._seconds.labels("compute").observe(compute)
        self._tokens.inc(tokens)
        self._rows.inc(rows)
        self._jobs.inc(parts)
        if log.isEnabledFor(logging.DEBUG):
            took = {"queue_ms": round(queue * 1e3, 1), "compute_ms": round(compute * 1e3, 1)}
            _event("verified", session, logging.DEBUG, tokens=tokens, rows=rows, **took)

    def superseded(self) -> None:
        """A request needed no rows any more."""
        self._superseded.inc()

    def came(self, size: int) -> None:
        """A message of `size` bytes came."""
        self._bytes.labels("in").inc(size)

    def went(self, size: int) -> None:
        """A message of `size` bytes went out."""
        self._bytes.labels("out").inc(size)

    def say(self, event: str, **fields: Any) -> None:
        """Log something of the server itself."""
        log.info(event, extra={"fields": fields})

    def fault(self, error: Exception, file: str, line: int | None) -> None:
        """A fault of ours; an exception's own words may hold what a user wrote."""
        log.error("fault", extra={"fields": {"error": type(error).__name__, "file": file, "line": line}})


class MetricsServer:
    """Serves metrics for Prometheus over HTTP, from a thread of its own."""

    def __init__(self, telemetry: Telemetry, host: str, port: int) -> None:
        """Listen.

        Raises:
            ServeError: the address can't be bound.
        """
        try:
            self._server, self._thread = start_http_server(port, host, telemetry.registry)
        except OSError as error:
            raise ServeError(
                f"Metrics can't be served on {host}:{port}: {error.strerror or error}. "
                "Choose another --metrics-port (0 picks a free one)."
            ) from None
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _event(event: str, session: Session, level: int = logging.INFO, **fields: Any) -> None:
    log.log(level, event, extra={"fields": {"session": session.tag, **_named(session.caller.name), **fields}})


def _named(key: str) -> dict[str, str]:
    return {"key": key} if key else {}
