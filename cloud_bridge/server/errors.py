"""What goes wrong on the server: a request that is refused, or a server that can't start."""

from __future__ import annotations

from cloud_bridge.wire import Reason
from edge_runtime.errors import CogenesisError


class RefusalError(Exception):
    """A request can't be served; becomes a gRPC status with the trailing metadata `cogenesis-reason`.

    Attributes:
        reason: for the client's program.
        message: for people; never holds text or tokens of a user.
        retry_after: seconds after which asking again makes sense; None where it does not, or at once.
    """

    def __init__(self, reason: Reason, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class ServeError(CogenesisError):
    """The server can't start: its address, its certificate, its keys or its model."""
