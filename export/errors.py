"""Defines the exporter's errors, each named for its cause; messages say what is wrong, where, and what to do."""

from __future__ import annotations

from edge_runtime.errors import CogenesisError


class ExportError(CogenesisError):
    """A model can't be turned into a bundle."""

    exit_code = 7


class ModelNotFoundError(ExportError):
    """The named model does not exist."""


class SourceError(ExportError):
    """A model's files are incomplete, damaged or contradict each other."""


class UnsupportedModelError(ExportError):
    """The model has a part that the exported graph can't express."""


class UnsupportedQuantizationError(ExportError):
    """The requested quantization does not fit this source."""


class ConformanceError(ExportError):
    """The finished bundle does not reproduce the logits of its conformance vectors."""


class WrongExportError(ExportError):
    """The exported decoder does not compute what an independent implementation computes from the same source."""


class AdapterExportError(ExportError):
    """A trained adapter can't be exported: its base model, training method or shapes do not fit the bundle."""
