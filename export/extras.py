"""Checks that the packages that only the exporter needs are installed."""

from __future__ import annotations

from edge_runtime.extras import require_packages

_EXTRA = ("torch", "transformers", "onnx", "onnxscript", "gguf")


def require_extra(*more: str) -> None:
    """Check that the exporter's packages are installed.

    Args:
        more: further packages to check; the extra that installs each has the same name.

    Raises:
        MissingExtraError: a package is missing.
    """
    require_packages("Exporting", *_EXTRA, *more, extra=",".join(("export", *more)))
