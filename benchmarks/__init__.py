"""Benchmarks: each prints a ratio against a peer."""
