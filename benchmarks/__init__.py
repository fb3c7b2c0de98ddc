"""Benchmarks; most of them compare with a peer."""
