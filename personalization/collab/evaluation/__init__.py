"""Measures every way to write, and reports it."""
