"""Runs the command line with `python -m cogenesis`."""

from cogenesis.cli import main

main()
