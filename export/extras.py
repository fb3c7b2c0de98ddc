"""Says which packages that only the exporter needs are not installed."""

from __future__ import annotations

from edge_runtime.extras import require_packages

_EXTRA = ("torch", "transformers", "onnx", "gguf", "optimum")


def require_extra(*more: str) -> None:
    """Refuse to go on without the exporter's packages.

    Args:
        more: names of further packages, each of an extra of its own.

    Raises:
        MissingExtraError: a package is missing.
    """
    require_packages("Exporting", *_EXTRA, *more, extra=",".join(("export", *more)))
