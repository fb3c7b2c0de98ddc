"""Checks that optional packages are installed, before anything imports them."""

from __future__ import annotations

import importlib.util

from edge_runtime.errors import MissingExtraError


def require_packages(purpose: str, *packages: str, extra: str) -> None:
    """Raise an error if a package that an extra installs is missing.

    Args:
        purpose: what needs the packages; the message begins with it: "Training".
        packages: import names of the packages.
        extra: the extra of cogenesis-edge that installs them, or several, separated by commas.

    Raises:
        MissingExtraError: a package is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs packages that are not installed: {', '.join(missing)}. "
            f"Run `pip install 'cogenesis-edge[{extra}]'`."
        )
