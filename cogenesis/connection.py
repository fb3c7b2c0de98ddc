"""Opens the connection that a command's --cloud option names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import RequestError
from edge_runtime.generation.options import Mode

if TYPE_CHECKING:
    from edge_runtime.cloud import Cloud


def open_cloud(
    mode: Mode,
    address: str | None,
    api_key: str | None,
    tls: bool,
    tls_ca: Path | None,
    timeout: float,
    *,
    key_without_tls: bool = False,
) -> Cloud | None:
    """Connect where the mode needs it.

    Raises:
        RequestError: the mode needs a cloud and no address was given, the CA file can't be read, or the key would
            travel in the clear.
    """
    if not mode.needs_cloud:
        return None
    if address is None:
        raise RequestError(f"Mode {mode} needs a cloud. Give --cloud HOST:PORT, or use --mode edge.")
    try:
        roots = tls_ca.read_bytes() if tls_ca else None
    except OSError as error:
        raise RequestError(f"The CA certificate can't be read: {tls_ca} ({error.strerror}).") from None
    from cloud_bridge.client import connect

    return connect(
        address,
        api_key=api_key,
        tls=tls or roots is not None,
        tls_root_certificates=roots,
        call_timeout=timeout,
        key_without_tls=key_without_tls,
    )
