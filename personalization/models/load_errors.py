"""Turns what the exporter's readers say about a model's files into an error of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from export.errors import ExportError
from personalization.errors import ModelError


@contextmanager
def model_errors() -> Iterator[None]:
    """Raise errors of the exporter as errors about a model; use it as a decorator or with `with`.

    The readers of models belong to the exporter. Where a model is read to train or to answer, nothing is exported.

    Raises:
        ModelError: the exporter's readers can't read a model.
    """
    try:
        yield
    except ExportError as error:
        raise ModelError(*error.args) from None
