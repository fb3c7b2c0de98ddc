"""Reads and writes JSON, including files inside archives and files larger than memory."""
