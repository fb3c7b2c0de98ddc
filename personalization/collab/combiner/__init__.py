"""Trains learned fusion and its schedule."""
