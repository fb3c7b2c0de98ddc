"""Provides the check and the error that all decoders use for malformed messages."""

from __future__ import annotations

from edge_runtime.errors import ProtocolError


def require(holds: bool, otherwise: str) -> None:
    """Check that a received message follows the wire format.

    Args:
        holds: whether the checked condition holds.
        otherwise: the problem if it does not, as part of a sentence.

    Raises:
        ProtocolError: the condition does not hold.
    """
    if not holds:
        raise malformed(otherwise)


def malformed(what: str) -> ProtocolError:
    """Make the error for a message that violates the wire format."""
    return ProtocolError(f"A message is malformed: {what}. Update the older of both sides.")
