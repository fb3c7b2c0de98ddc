"""Queries and configures the machine: threads and memory."""
