"""Prints progress, counters and tables on the command line."""
