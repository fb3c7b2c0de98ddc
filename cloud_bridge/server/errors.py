"""Defines the server's errors: it rejects a request, or it can't start."""

from __future__ import annotations

from cloud_bridge.wire import Reason
from edge_runtime.errors import CogenesisError


class RefusalError(Exception):
    """The server rejects a request; becomes a gRPC status with the trailing metadata `cogenesis-reason`.

    Attributes:
        reason: the reason for the client's code.
        message: the reason for people; never contains a user's text or tokens.
        retry_after: retry delay in seconds; None if a retry is useless or needs no delay.
    """

    def __init__(self, reason: Reason, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class ServeError(CogenesisError):
    """The server can't start: its address, its certificate, its keys or its model."""
