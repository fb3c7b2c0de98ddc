"""Checks that optional packages are installed, before anything imports them."""

from __future__ import annotations

import importlib.util

from edge_runtime.errors import MissingExtraError


def require_packages(purpose: str, *packages: str, extra: str) -> None:
    """Refuse to go on without packages that an extra installs.

    Args:
        purpose: what needs them, the first word of the message: "Training".
        packages: their import names.
        extra: the extra of cogenesis-edge that installs them, or several with commas between.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs packages that are not installed: {', '.join(missing)}. "
            f"Run `pip install 'cogenesis-edge[{extra}]'`."
        )
