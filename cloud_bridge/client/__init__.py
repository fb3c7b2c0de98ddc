"""The light client of a cloud: `connect(address)` returns an implementation of `edge_runtime.cloud.Cloud`."""

import logging
import os

# Otherwise gRPC's core writes to stderr when a connection fails; we report such errors ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cloud_bridge.client.client import CloudClient, connect

# gRPC's Python layer logs damaged bytes with a traceback. Without a handler, this would go to stderr.
logging.getLogger("grpc").addHandler(logging.NullHandler())

__all__ = ["CloudClient", "connect"]
