"""What the command line prints: progress, counters, tables."""
