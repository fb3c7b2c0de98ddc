"""Prepares the check of an export: `checker_of`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.decoders.open import open_decoder
from export.check.check import check_model, check_twin
from export.check.source import Source, reference_config, reference_of, sample_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.manifest import DecoderSpec, SourceCheck
    from edge_runtime.bundle.reader import Bundle
    from export.check.check import LayerInputs, OpenTwin
    from export.progress import Progress


def checker_of(
    source: Source,
    scheme: str,
    open_twin: OpenTwin,
    layer_inputs: Callable[[Bundle, DecoderSpec], LayerInputs] | None,
    progress: Progress,
) -> Callable[[Bundle, DecoderSpec], SourceCheck]:
    """Check a small model of the source's kind before any weight is read; return the check of the finished decoder.

    Args:
        source: the model.
        scheme: quantization of its weights.
        open_twin: opens a decoder for a small model; see `check_twin`.
        layer_inputs: returns a function that tells what enters a decoder's layers; None if the runtime can't tell.
        progress: see `export.progress`.

    Raises:
        WrongExportError: our decoder for models of this kind does not compute what transformers computes.
    """
    progress("Checking a small model of its kind", 0, 1)
    config = reference_config(source)
    check_twin(config, open_twin, source.path, getattr(source, "ready_made_rope", None))
    progress("Checking a small model of its kind", 1, 1)

    def check(bundle: Bundle, spec: DecoderSpec) -> SourceCheck:
        reference = reference_of(source, config)
        token_ids = sample_tokens(source.tokenizer(), bundle.manifest.context_length)
        decoder = open_decoder(bundle, spec.backend)
        inputs = None if layer_inputs is None else layer_inputs(bundle, spec)
        return check_model(reference, decoder, token_ids, scheme, inputs, source.path)

    return check
