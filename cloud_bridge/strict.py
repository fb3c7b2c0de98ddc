"""How a decoder refuses: one check, one kind of error, one form of words."""

from __future__ import annotations

from edge_runtime.errors import ProtocolError


def require(holds: bool, otherwise: str) -> None:
    """Go on only if what was received is as the wire format says.

    Args:
        holds: whether it is.
        otherwise: what is wrong, as part of a sentence.

    Raises:
        ProtocolError: it is not.
    """
    if not holds:
        raise malformed(otherwise)


def malformed(what: str) -> ProtocolError:
    """The error of a message that the wire format does not allow."""
    return ProtocolError(f"A message is malformed: {what}. Update the older of both sides.")
