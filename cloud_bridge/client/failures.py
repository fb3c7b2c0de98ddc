"""Turns gRPC's failures into typed errors that say what is wrong, where, and what to do."""

from __future__ import annotations

import grpc

from cloud_bridge.wire import REASON_KEY
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
    grpc.StatusCode.RESOURCE_EXHAUSTED: ProtocolError,  # without a reason: gRPC's own limit of a message's size
}
_UPDATE = "Check the address, and update the older of device and cloud."
_WHAT: dict[type[CloudError], tuple[str, str]] = {
    CloudRefusedError: ("The cloud refuses the API key", "Give a valid --api-key."),
    TokenizerMismatchError: (
        "The cloud model's tokenizer is another than the bundle's",
        "Serve a model of the same family, or use --mode sketch.",
    ),
    CloudOverloadedError: ("The cloud has no session free", "Try again later, or serve with more --max-sessions."),
    CloudContextFullError: (
        "The instruction and the answer fill the cloud model's context",
        "Shorten the instruction or the answer.",
    ),
    CloudTimeoutError: ("The cloud did not answer in time", "Try again, or allow it more time."),
    CloudUnavailableError: (
        "The cloud can't be reached",
        "Check the address and that `cogenesis cloud serve` runs there.",
    ),
    ProtocolError: ("What answers does not speak this protocol", _UPDATE),
}
# Reasons that say more than their error.
_WHAT_BY_REASON: dict[str, tuple[str, str]] = {
    "evicted": ("The cloud gave this session to another client", "Try again."),
    "stopping": ("The cloud is being stopped", "Try again later."),
    "bad_request": ("The cloud does not accept the request", "Ask for what it offers, or update the older side."),
    "internal": ("The cloud failed", "Try again, and look into its log."),
}


def cloud_error(error: grpc.RpcError, address: str) -> CloudError:
    """The typed error for a failed call.

    Args:
        error: of a call that has ended.
        address: of the cloud, for the message.
    """
    reason = str(dict(error.trailing_metadata() or ()).get(REASON_KEY, ""))
    kind = _BY_REASON.get(reason) or _BY_STATUS.get(error.code(), ProtocolError)
    return _describe(kind, _WHAT_BY_REASON.get(reason, _WHAT[kind]), address, error.details() or "")


def describe(kind: type[CloudError], address: str, details: str = "") -> CloudError:
    """An error of `kind` with its cause, place and mend; `details` come from outside and are cleaned."""
    return _describe(kind, _WHAT[kind], address, details)


def copy_of(error: Exception) -> Exception:
    """The same error as a new object: each thread that raises it adds its own traceback."""
    return type(error)(*error.args)


def _describe(kind: type[CloudError], words: tuple[str, str], address: str, details: str) -> CloudError:
    what, mend = words
    shown = _clean(details)
    if "CERTIFICATE_VERIFY_FAILED" in details or "handshake" in details.lower():
        mend = "Check the certificate (--tls-ca), and that both sides use TLS."
    return kind(f"{what}: {address}{f' ({shown})' if shown else ''}. {mend}")


def _clean(details: str) -> str:
    # gRPC nests causes, the root last: "failed to connect to all addresses; last error: ...: Connection refused".
    cause = details.rsplit("last error: ", 1)[-1]
    printable = "".join(character if character.isprintable() else " " for character in cause)
    return " ".join(printable.split()).rstrip(".")[:200]
