"""Every error of the exporter, named for its cause; messages say what is wrong, where, and what to do."""

from __future__ import annotations

from edge_runtime.errors import CogenesisError


class ExportError(CogenesisError):
    """A model can't be turned into a bundle."""

    exit_code = 7


class ModelNotFoundError(ExportError):
    """The model that was named is not there."""


class SourceError(ExportError):
    """A model's files are incomplete, damaged or contradict each other."""


class UnsupportedModelError(ExportError):
    """The model has a part that no graph of ours can express."""


class UnsupportedQuantizationError(ExportError):
    """The quantization asked for does not fit this source."""


class ConformanceError(ExportError):
    """The finished bundle does not give the logits that its conformance vectors promise."""


class AdapterExportError(ExportError):
    """A trained adapter can't become an adapter of a bundle: another base, a method or a shape that doesn't fit."""
