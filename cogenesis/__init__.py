"""The front door: one command line over the runtime, the bridge, the exporter and the training tools."""
