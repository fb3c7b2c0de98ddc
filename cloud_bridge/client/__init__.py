"""The light client of a cloud: `connect(address)` gives what `edge_runtime.cloud.Cloud` asks for."""

import logging
import os

# gRPC's core writes lines of its own to stderr when a connection fails; errors are ours to report.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cloud_bridge.client.client import CloudClient, connect

# gRPC's Python part logs damaged bytes with a traceback, which goes to stderr where nobody has set up logging.
logging.getLogger("grpc").addHandler(logging.NullHandler())

__all__ = ["CloudClient", "connect"]
