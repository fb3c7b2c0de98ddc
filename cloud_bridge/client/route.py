"""The way to a cloud: one connection for all calls, and a new one as soon as the old one has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from cloud_bridge.wire import method_path
from edge_runtime.errors import CloudTimeoutError, CloudUnavailableError


class Line:
    """One gRPC channel and what can be called over it, bytes on both sides; made by `Route.take`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.users = 0
        self.info = channel.unary_unary(method_path("Info"))
        self.score = channel.stream_stream(method_path("Score"))
        self.sketch = channel.unary_stream(method_path("Sketch"))
        self.answer = channel.unary_stream(method_path("Answer"))


class Route:
    """Gives each call its line; safe to share between threads.

    A channel whose connection has failed waits before it connects again, and one whose connection is half-open takes
    calls until a keepalive ping has failed. Whoever calls knows when it makes sense to try again, so a line that failed
    is not used for new calls; calls that are still under way on it go on.
    """

    def __init__(self, open_channel: Callable[[], grpc.Channel]) -> None:
        """Use `open_channel`, which must not share connections between channels."""
        self._open_channel = open_channel
        self._lock = threading.RLock()  # a dropped stream may be collected, and give its line back, at any point
        self._current: Line | None = None
        self._lines: set[Line] = set()
        self._closed = False

    def take(self) -> Line | None:
        """A line for one call, until it is given back; None after `close`."""
        with self._lock:
            if self._closed:
                return None
            if self._current is None:
                self._current = Line(self._open_channel())
                self._lines.add(self._current)
            self._current.users += 1
            return self._current

    def leave(self, line: Line, failure: Exception) -> None:
        """A call failed: where the connection was at fault, the next call takes another one."""
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
        """The call is over."""
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
