"""Opens the gRPC channel: limits, keepalive and TLS."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import grpc

from cloud_bridge.wire import MAX_MESSAGE_BYTES
from edge_runtime.errors import RequestError


def channel_to(
    address: str,
    *,
    tls: bool,
    tls_root_certificates: bytes | None,
    tls_server_name: str | None,
    connect_timeout: float,
    secret: bool,
) -> Callable[[], grpc.Channel]:
    """Make a function that opens channels; each has its own connection, which opens with the first call.

    Args:
        address: `HOST:PORT`.
        tls: encrypt the connection.
        tls_root_certificates: PEM; None uses gRPC's.
        tls_server_name: name in the certificate; None uses the host.
        connect_timeout: timeout in seconds for an attempt to connect.
        secret: whether calls carry a secret, such as an API key.

    Raises:
        RequestError: the address or the certificates are not valid, or a secret would be sent unencrypted.
    """
    host = _host(address)
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Keepalive detects a half-open connection within 16 seconds; servers allow a ping every 10 seconds.
        ("grpc.keepalive_time_ms", 12_000),
        ("grpc.keepalive_timeout_ms", 4_000),
        # Timeout of one attempt to connect. The caller decides about pauses between attempts (see `Route`).
        ("grpc.min_reconnect_backoff_ms", int(connect_timeout * 1000)),
        ("grpc.use_local_subchannel_pool", 1),
        # One ledger entry is one message on the wire, so gRPC must not retry on its own.
        ("grpc.enable_retries", 0),
        # No DNS query except the one for the address itself.
        ("grpc.service_config_disable_resolution", 1),
    ]
    if is_loopback(host):
        options.append(("grpc.enable_http_proxy", 0))
    elif secret and not tls:
        raise RequestError(
            f"The API key would be sent to {address} without encryption. Use TLS (`tls`), or allow it "
            "(`key_without_tls`)."
        )
    if not tls:
        return lambda: grpc.insecure_channel(address, options=options)
    if tls_root_certificates is not None:
        _check_certificates(tls_root_certificates)
    if tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    credentials = grpc.ssl_channel_credentials(tls_root_certificates)
    return lambda: grpc.secure_channel(address, credentials, options=options)


def bearer(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Build the metadata with the API key.

    Raises:
        RequestError: the key has characters that are not allowed in metadata.
    """
    if api_key is None:
        return ()
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise RequestError(
            "`api_key` is empty or has characters that no API key has, such as spaces. Copy the key again."
        )
    return (("authorization", f"Bearer {api_key}"),)


def _host(address: str) -> str:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in address:
        raise RequestError(f"The cloud's address is not HOST:PORT: '{address}'. Give one like 127.0.0.1:50051.")
    return host.strip("[]")


def is_loopback(host: str) -> bool:
    """Whether a host, given by name or address, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_certificates(pem: bytes) -> None:
    import ssl

    try:
        ssl.create_default_context().load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise RequestError("`tls_root_certificates` must be CA certificates in PEM form. Give others.") from None
