"""Reads GGUF files: header, parts, families, blocks and weights."""
