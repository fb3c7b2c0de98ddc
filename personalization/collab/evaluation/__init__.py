"""Measures all systems that write answers, and reports the results."""
