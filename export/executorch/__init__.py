"""Exports decoders as ExecuTorch programs."""
