"""Converts PEFT adapters to a bundle's adapter files."""
