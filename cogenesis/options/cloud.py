"""Options for a connection to the cloud, and the code that opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_runtime.errors import RequestError

if TYPE_CHECKING:
    from cloud_bridge.client import CloudClient
    from edge_runtime.generation.options import Mode

CLOUD = "The cloud"

CloudOption = Annotated[
    str | None,
    typer.Option(
        "--cloud", metavar="HOST:PORT", help="Address of the cloud.", rich_help_panel=CLOUD, show_default=False
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Maximum seconds to wait for each reply.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="COGENESIS_API_KEY",
        help="API key to send to the cloud.",
        rich_help_panel=CLOUD,
        show_default=False,
    ),
]
TlsOption = Annotated[
    bool,
    typer.Option(
        "--tls",
        help="Encrypt the connection, and verify the cloud's certificate with the system's CAs.",
        rich_help_panel=CLOUD,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """How a command identifies itself to the cloud, and whether the connection is encrypted."""

    api_key: ApiKeyOption = None
    tls: TlsOption = False


@dataclass(frozen=True, kw_only=True)
class Connection(Credentials):
    """How a command connects to the cloud."""

    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca",
            help="Encrypt the connection, and verify the cloud's certificate with this CA file (PEM). Implies --tls.",
            rich_help_panel=CLOUD,
            show_default=False,
        ),
    ] = None
    key_without_tls: Annotated[
        bool,
        typer.Option(
            "--key-without-tls",
            help="Allow sending the API key to another machine without encryption. Anyone on the network path "
            "can read it.",
            rich_help_panel=CLOUD,
        ),
    ] = False
    timeout: TimeoutOption = 60.0

    def open(self, address: str) -> CloudClient:
        """Create a client; it connects at its first call.

        Raises:
            RequestError: the CA file can't be read, or the key would be sent unencrypted.
        """
        try:
            roots = self.tls_ca.read_bytes() if self.tls_ca else None
        except OSError as error:
            raise RequestError(
                f"The CA certificates can't be read: {self.tls_ca} ({error.strerror}). Give another --tls-ca."
            ) from None
        from cloud_bridge.client import connect

        return connect(
            address,
            api_key=self.api_key,
            tls=self.tls,
            tls_root_certificates=roots,
            call_timeout=self.timeout,
            key_without_tls=self.key_without_tls,
        )

    def open_for(self, mode: Mode, address: str | None) -> CloudClient | None:
        """Create a client if the mode needs the cloud, otherwise return None.

        Raises:
            RequestError: the mode needs a cloud and no address was given, or see `open`.
        """
        if not mode.needs_cloud:
            return None
        if address is None:
            raise RequestError(f"Mode {mode} needs a cloud. Give --cloud HOST:PORT, or use --mode edge.")
        return self.open(address)
