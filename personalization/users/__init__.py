"""Reads and splits users' data, and holds some of it out."""
