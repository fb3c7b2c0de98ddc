"""Says which packages that only the exporter needs are not installed."""

from __future__ import annotations

import importlib.util

from edge_runtime.errors import MissingExtraError

_EXTRA = ("torch", "transformers", "onnx", "gguf", "optimum")


def require_extra(*more: str) -> None:
    """Refuse to go on without the exporter's packages.

    Args:
        more: names of further packages, each of an extra of its own.

    Raises:
        MissingExtraError: a package is missing.
    """
    missing = [name for name in (*_EXTRA, *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Exporting needs packages that are not installed: {', '.join(missing)}. "
            f"Run `pip install 'cogenesis-edge[{','.join(('export', *more))}]'`."
        )
