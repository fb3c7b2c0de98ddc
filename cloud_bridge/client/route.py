"""Manages the connection to a cloud: one for all calls, and a new one as soon as the old one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from cloud_bridge.wire import method_path
from edge_runtime.errors import CloudTimeoutError, CloudUnavailableError


class Line:
    """One gRPC channel and its methods, which take and return bytes; made by `Route.take`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.users = 0
        self.info = channel.unary_unary(method_path("Info"))
        self.score = channel.stream_stream(method_path("Score"))
        self.sketch = channel.unary_stream(method_path("Sketch"))
        self.answer = channel.unary_stream(method_path("Answer"))


class Route:
    """Gives each call its line; safe to share between threads.

    After a failed connection, gRPC's channel waits before it reconnects. With a half-open connection, it accepts calls
    until a keepalive ping fails. The caller knows better when to retry, so new calls never use a failed line. Its
    running calls continue.
    """

    def __init__(self, open_channel: Callable[[], grpc.Channel]) -> None:
        """Open channels with `open_channel`, which must not share connections between channels."""
        self._open_channel = open_channel
        self._lock = threading.RLock()  # reentrant: at any point, a deleted stream may give its line back
        self._current: Line | None = None
        self._lines: set[Line] = set()
        self._closed = False

    def take(self) -> Line | None:
        """Return a line for one call, which must give it back; None after `close`."""
        with self._lock:
            if self._closed:
                return None
            if self._current is None:
                self._current = Line(self._open_channel())
                self._lines.add(self._current)
            self._current.users += 1
            return self._current

    def leave(self, line: Line, failure: Exception) -> None:
        """Report a failed call; if the connection caused the failure, the next call uses a new one."""
        with self._lock:
            if line is not self._current or not isinstance(failure, (CloudUnavailableError, CloudTimeoutError)):
                return
            self._current = None
            unused = line.users == 0
            if unused:
                self._lines.discard(line)
        if unused:
            line.channel.close()

    def give_back(self, line: Line) -> None:
        """Give a line back at the end of a call."""
        with self._lock:
            line.users -= 1
            unused = line is not self._current and line.users == 0
            if unused:
                self._lines.discard(line)
        if unused:
            line.channel.close()

    def close(self) -> None:
        """End all calls and connections."""
        with self._lock:
            self._closed = True
            self._current = None
            lines, self._lines = self._lines, set()
        for line in lines:
            line.channel.close()
