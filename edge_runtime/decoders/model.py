"""Defines the data that all sequences over one loaded model share, on any backend."""

from __future__ import annotations

from edge_runtime.bundle.manifest import DecoderSpec
from edge_runtime.bundle.reader import Bundle


class DecoderModel:
    """A decoder of a bundle: its description, graph path and limits. Each backend adds the loaded graph."""

    def __init__(self, bundle: Bundle, spec: DecoderSpec) -> None:
        self.spec = spec
        self.path = bundle.path(spec.graph)
        self.vocab_size = bundle.manifest.vocab_size
        self.context_length = bundle.manifest.context_length
        self.fingerprint = bundle.fingerprint(spec)
