"""`cogenesis cloud info`: shows which model a cloud serves."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cogenesis.options.cloud import Connection
from cogenesis.options.expand import expand

_SOON = Connection(timeout=10.0)


@expand
def info(
    address: Annotated[str, typer.Argument(help="Address of the cloud, HOST:PORT.", show_default=False)],
    connection: Connection = _SOON,
) -> None:
    """Show which model a cloud serves, as one line of JSON.

    Example: cogenesis cloud info 127.0.0.1:50051
    """
    from edge_runtime.privacy.gate import Gate, Policy
    from edge_runtime.privacy.ledger import Ledger

    with connection.open(address) as cloud:
        print(json.dumps(asdict(cloud.info(Gate(Policy.SKETCH, Ledger()).info()))))
