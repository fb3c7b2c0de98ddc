"""Prepares the check of an export: `checker_of`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.decoders.open import open_decoder
from export.check.check import check_model, check_twin, family_twin
from export.check.source import reference_config, reference_of, reference_rope, sample_tokens
from export.model.hf_source import HFSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.manifest import DecoderSpec, SourceCheck
    from edge_runtime.bundle.reader import Bundle
    from export.check.check import LayerInputs, OpenFamily
    from export.model.gguf.source import GGUFSource
    from export.progress import Progress


def checker_of(
    source: HFSource | GGUFSource,
    scheme: str,
    opened: OpenFamily,
    layer_inputs: Callable[[Bundle, DecoderSpec], LayerInputs] | None,
    progress: Progress,
    *,
    sliding: bool = True,
) -> Callable[[Bundle, DecoderSpec], SourceCheck]:
    """Check a small model of the source's kind before any weight is read; return the check of the finished decoder.

    Args:
        source: the model.
        scheme: quantization of its weights.
        opened: opens a decoder of our own for an architecture and its weights.
        layer_inputs: returns a function that tells what enters a decoder's layers; None if the runtime can't tell.
        progress: see `export.progress`.
        sliding: whether the decoder can do sliding windows.

    Raises:
        WrongExportError: our decoder for models of this kind does not compute what transformers computes.
    """
    progress("Checking a small model of its kind", 0, 1)
    config = reference_config(source)
    open_twin = family_twin(None if isinstance(source, HFSource) else source.architecture, opened, sliding=sliding)
    check_twin(config, open_twin, source.path, reference_rope(source))
    progress("Checking a small model of its kind", 1, 1)

    def check(bundle: Bundle, spec: DecoderSpec) -> SourceCheck:
        reference = reference_of(source, config)
        token_ids = sample_tokens(source.tokenizer(), bundle.manifest.context_length)
        decoder = open_decoder(bundle, spec.backend)
        inputs = None if layer_inputs is None else layer_inputs(bundle, spec)
        return check_model(reference, decoder, token_ids, scheme, inputs, source.path)

    return check
