"""Converts gRPC failures to typed errors that say what is wrong, where, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from cloud_bridge.wire import REASON_KEY, RETRY_AFTER_KEY
from edge_runtime.errors import (
    CloudContextFullError,
    CloudError,
    CloudOverloadedError,
    CloudRefusedError,
    CloudTimeoutError,
    CloudUnavailableError,
    ProtocolError,
    TokenizerMismatchError,
)

_BY_REASON: dict[str, type[CloudError]] = {
    "api_key": CloudRefusedError,
    "tokenizer_mismatch": TokenizerMismatchError,
    "overloaded": CloudOverloadedError,
    "quota": CloudOverloadedError,
    "evicted": CloudOverloadedError,
    "stopping": CloudUnavailableError,
    "context_full": CloudContextFullError,
    "bad_request": ProtocolError,
    "internal": CloudUnavailableError,
}
_BY_STATUS: dict[grpc.StatusCode, type[CloudError]] = {
    grpc.StatusCode.UNAUTHENTICATED: CloudRefusedError,
    grpc.StatusCode.PERMISSION_DENIED: CloudRefusedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: CloudTimeoutError,
    grpc.StatusCode.UNAVAILABLE: CloudUnavailableError,
    grpc.StatusCode.CANCELLED: CloudUnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ProtocolError,  # without a reason: gRPC's own limit on the message size
}
_UPDATE = "Check the address, and update the older of device and cloud."
_WHAT: dict[type[CloudError], tuple[str, str]] = {
    CloudRefusedError: ("The cloud refuses the API key", "Give a valid `api_key`."),
    TokenizerMismatchError: (
        "The cloud model's tokenizer differs from the bundle's",
        "Serve a model of the same family, or use `mode` sketch.",
    ),
    CloudOverloadedError: ("The cloud has no session free", "Try again later, or have the cloud serve more sessions."),
    CloudContextFullError: (
        "The instruction and the answer fill the cloud model's context",
        "Shorten the instruction or the answer.",
    ),
    CloudTimeoutError: ("The cloud did not answer in time", "Try again, or allow it more time."),
    CloudUnavailableError: (
        "The cloud can't be reached",
        "Check the address and that `cogenesis cloud serve` runs there.",
    ),
    ProtocolError: ("The server does not speak this protocol", _UPDATE),
}
# Messages for reasons that are more specific than their error class.
_WHAT_BY_REASON: dict[str, tuple[str, str]] = {
    "quota": ("The API key's quota is used up", "Try again later, or ask the cloud's owner for more."),
    "evicted": ("The cloud gave this session to another client", "Try again."),
    "stopping": ("The cloud is being stopped", "Try again later."),
    "bad_request": ("The cloud does not accept the request", "Ask for what it offers, or update the older side."),
    "internal": ("The cloud failed", "Try again, and look into its log."),
}
_DAMAGED = ("The connection to the cloud was damaged", "Try again.")
_LONGEST_RETRY_AFTER = 3600.0


@dataclass(eq=False, slots=True)
class Peer:
    """The server that a client talks to, and what the client knows about it.

    An unreadable reply has one of two causes. If the peer has never sent a valid reply, it speaks another protocol, and
    a retry is useless. Otherwise the reply was damaged in transit, and a new connection helps.

    Attributes:
        address: the address that the user gave.
        proven: whether the peer has sent a valid reply to a `verify`.
    """

    address: str
    proven: bool = False

    def error(self, error: grpc.RpcError, *, answered: bool = False) -> CloudError:
        """Make the typed error for a failed call.

        Args:
            error: gRPC's error of the failed call.
            answered: whether this call received valid replies before.
        """
        trailer = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
        details = error.details() or ""
        reason = trailer.get(REASON_KEY, "")
        kind = _BY_REASON.get(reason)
        if kind is None:
            kind = _BY_STATUS.get(error.code(), ProtocolError)
            reason = ""
        if kind is ProtocolError and (answered if reason else self.proven):
            return _describe(CloudUnavailableError, _DAMAGED, self.address, details)
        typed = _describe(kind, _WHAT_BY_REASON.get(reason, _WHAT[kind]), self.address, details)
        typed.retry_after = _seconds(trailer.get(RETRY_AFTER_KEY, ""))
        return typed

    def damaged(self, error: ProtocolError) -> CloudError:
        """Make the error for an unreadable reply."""
        if not self.proven:
            return error
        return _describe(CloudUnavailableError, _DAMAGED, self.address, str(error).rpartition(": ")[2])

    def describe(self, kind: type[CloudError], details: str = "") -> CloudError:
        """Make an error of `kind` with cause, place and remedy; `details` are untrusted and are sanitized."""
        return _describe(kind, _WHAT[kind], self.address, details)


def copy_of(error: Exception) -> Exception:
    """Copy an error, because each thread that raises it adds its own traceback."""
    copy = type(error)(*error.args)
    if isinstance(copy, CloudError) and isinstance(error, CloudError):
        copy.retry_after = error.retry_after
    return copy


def _seconds(milliseconds: str) -> float:
    # Untrusted input: ignore anything that is not a number.
    return min(int(milliseconds) / 1000, _LONGEST_RETRY_AFTER) if milliseconds.isdecimal() else 0.0


def _describe(kind: type[CloudError], words: tuple[str, str], address: str, details: str) -> CloudError:
    what, mend = words
    shown = _clean(details)
    if "CERTIFICATE_VERIFY_FAILED" in details or "handshake" in details.lower():
        mend = "Check the CA certificates, and that both sides use TLS."
    return kind(f"{what}: {address}{f' ({shown})' if shown else ''}. {mend}")


def _clean(details: str) -> str:
    # gRPC puts the root cause last: "failed to connect to all addresses; last error: ...: Connection refused".
    cause = details.rsplit("last error: ", 1)[-1]
    printable = "".join(character if character.isprintable() else " " for character in cause)
    return " ".join(printable.split()).rstrip(".")[:200]
