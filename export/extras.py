"""Checks that the packages that only the exporter needs are installed."""

from __future__ import annotations

import importlib.util

from edge_runtime.errors import MissingExtraError

_EXTRA = ("torch", "transformers", "onnx", "gguf", "optimum")


def require_extra(*more: str) -> None:
    """Check that the exporter's packages are installed.

    Args:
        more: further packages to check; the extra that installs each has the same name.

    Raises:
        MissingExtraError: a package is missing.
    """
    missing = [name for name in (*_EXTRA, *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Exporting needs packages that are not installed: {', '.join(missing)}. "
            f"Run `pip install 'cogenesis-edge[{','.join(('export', *more))}]'`."
        )
