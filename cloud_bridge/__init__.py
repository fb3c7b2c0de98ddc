"""The bridge between a device and its cloud: the wire format, the light client and the server."""
