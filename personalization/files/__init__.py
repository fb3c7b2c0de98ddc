"""Reads and writes JSON, also inside archives and larger than memory."""
