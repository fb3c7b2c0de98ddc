"""Runs the command line for `cogenesis` and `python -m cogenesis`, and names the extra to install if it is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from edge_runtime.errors import MissingExtraError


def main() -> None:
    """Run the command line; if the extra `cli` is missing, print one line and exit with code 10."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        # The device needs neither package, so this must run before any import of them.
        print(
            f"error: The command line needs packages that are not installed: {', '.join(missing)}. "
            "Run `pip install 'cogenesis-edge[cli]'`.",
            file=sys.stderr,
        )
        sys.exit(MissingExtraError.exit_code)
    from cogenesis.cli import main as run

    run()


if __name__ == "__main__":
    main()
