"""Decoders as ExecuTorch programs."""
