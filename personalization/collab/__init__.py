"""The learning side of CoGenesis."""
