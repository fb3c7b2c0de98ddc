"""Checks decoders against their source: a small twin past every boundary of positions, and the real model on a text."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.manifest import SourceCheck
from edge_runtime.decoders.onnx_decoder import PREFILL_CHUNK
from export.check.compare import Sequential, decoder_rows, noise, refuse
from export.check.reference import REFERENCE, CheckpointWeights, LoadedReference, Reference
from export.check.twin import (
    NEAR,
    NEAR_WITHOUT_CONFIGURATION,
    VOCABULARY,
    boundaries_of,
    twin_architecture,
    twin_config,
    write_twin,
)
from export.model.fused import whole_of
from export.model.gguf.families import OFFSET_NORMS
from export.model.hf_source import HFSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from export.model.architecture import Architecture
    from export.model.rope import Rope

    # Returns what enters each layer, by number, for a text.
    LayerInputs = Callable[[Sequence[int]], Mapping[int, NDArray[np.float32]]]
    # Opens a decoder of an architecture whose weights the function reads.
    OpenFamily = Callable[
        [Architecture, Callable[[str], NDArray[np.float32]]],
        AbstractContextManager[tuple[Sequential, LayerInputs | None]],
    ]
    # Opens a decoder of the model in a directory that has this configuration; also says how many positions it serves.
    OpenTwin = Callable[[Path, Mapping[str, Any]], AbstractContextManager[tuple[Sequential, LayerInputs | None, int]]]

TWIN_TOLERANCE = 5e-5
"""Largest noise of a float32 twin. Another order of sums gives 1e-6; an epsilon of 1e-5 for 1e-6 gives 8e-4."""
TOLERANCE = {"fp32": 2e-3, "keep": 0.25, "int8": 0.25, "mixed": 0.6, "int4": 0.7}
"""Largest noise of a real model, by its quantization; unrelated logits give 1.4."""

_PAST = 48  # positions past the last boundary


def check_twin(config: Mapping[str, Any], open_twin: OpenTwin, where: Path, rope: Rope | None = None) -> int:
    """Compare a small random model of the same kind with transformers, in float32, past every boundary of positions.

    Args:
        config: the source's Hugging Face configuration.
        open_twin: opens a decoder for the twin.
        where: the source's path, for the error message.
        rope: rotary positions that the configuration can't express; see `Reference`.

    Returns:
        The number of positions compared.

    Raises:
        WrongExportError: the decoder differs from transformers; the message names the first layer that does.
        UnsupportedModelError: transformers can't build the model.
    """
    small = twin_config(config, NEAR if where.is_dir() else NEAR_WITHOUT_CONFIGURATION)
    with tempfile.TemporaryDirectory(prefix="cogenesis-twin-") as directory:
        root = Path(directory)
        write_twin(small, root)
        reference = Reference(json.loads((root / "config.json").read_bytes()), CheckpointWeights(root), rope)
        with open_twin(root, small) as (decoder, layer_inputs, context_length):
            boundaries = [*boundaries_of(small), PREFILL_CHUNK]
            length = min(max(boundaries) + _PAST, context_length)
            boundaries = [end for end in boundaries if end < length]
            token_ids = np.random.default_rng(0).integers(0, VOCABULARY, length).tolist()
            expected = reference.logits(token_ids)
            found = decoder_rows(decoder, token_ids, boundaries)
            # Part by part, because a difference beyond the last boundary would be lost in an average.
            ends = sorted({0, length, *boundaries})
            value = max(noise(found[start:stop], expected[start:stop]) for start, stop in itertools.pairwise(ends))
            if not value <= TWIN_TOLERANCE:
                layer = first_layer(reference, layer_inputs, token_ids, TWIN_TOLERANCE)
                refuse("In a small random model of its kind", value, TWIN_TOLERANCE, REFERENCE, layer, str(where))
    return length


def family_twin(architecture: Architecture | None, opened: OpenFamily, *, sliding: bool = True) -> OpenTwin:
    """Return how to open a twin of a family that we write ourselves.

    Args:
        architecture: what our reader made of a source that has no Hugging Face configuration; None reads the twin's.
        opened: opens a decoder.
        sliding: whether the decoder can do sliding windows.
    """

    @contextmanager
    def open_twin(root: Path, small: Mapping[str, Any]) -> Iterator[tuple[Sequential, LayerInputs | None, int]]:
        if architecture is None:
            source = HFSource(root)
            shape, read = source.architecture, source.read
        else:
            shape = twin_architecture(architecture, small)
            read = functools.partial(_read_part, CheckpointWeights(root), shape)
            if shape.family in OFFSET_NORMS:
                read = functools.partial(_with_offset, read)
        shape = shape.with_context(None, sliding=sliding)
        with opened(shape, read) as (decoder, layer_inputs):
            yield decoder, layer_inputs, shape.context_length

    return open_twin


def _read_part(weights: CheckpointWeights, shape: Architecture, name: str) -> NDArray[np.float32]:
    """Read a tensor, or a projection that is stored together with others."""
    whole = whole_of(name, shape)
    if name in weights or whole is None:
        found: NDArray[np.float32] = weights[name].numpy()
    else:
        found = weights[whole[0]].numpy()[whole[1]]
    return found


def _with_offset(read: Callable[[str], NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """Read a tensor as a GGUF file of Gemma holds it: norms have the 1 that the model adds."""
    return read(name) + np.float32(1) if "norm" in name else read(name)


def check_model(
    reference: Reference | LoadedReference,
    decoder: Sequential,
    token_ids: Sequence[int],
    scheme: str,
    layer_inputs: LayerInputs | None,
    where: Path,
) -> SourceCheck:
    """Compare the finished decoder with the source model on a text.

    Args:
        reference: the source, as transformers computes it.
        decoder: the finished decoder.
        token_ids: the text.
        scheme: the decoder's quantization; see `TOLERANCE`.
        layer_inputs: what enters the decoder's layers, if it can tell.
        where: the source's path, for the error message.

    Raises:
        WrongExportError: the decoder differs by more than its quantization explains.
    """
    tolerance = TOLERANCE[scheme]
    value = noise(decoder_rows(decoder, token_ids), reference.logits(token_ids))
    decoder.rewind(0)
    if not value <= tolerance:
        layer = first_layer(reference, layer_inputs, token_ids, tolerance)
        refuse(f"On a text of {len(token_ids)} tokens", value, tolerance, REFERENCE, layer, str(where))
    return SourceCheck(REFERENCE, len(token_ids), round(value, 6), tolerance)


def first_layer(
    reference: Reference | LoadedReference, layer_inputs: LayerInputs | None, token_ids: Sequence[int], tolerance: float
) -> str:
    """Name the first layer whose output differs, as the end of a sentence; "" if the decoder can't tell."""
    if layer_inputs is None:
        return ""
    found, expected = layer_inputs(token_ids), reference.layer_inputs(token_ids)
    for layer, values in sorted(found.items()):
        if not noise(values, expected[layer]) <= tolerance:
            return f"; the first layer that differs is layer {layer - 1}"
    return f"; what enters the last layer, {max(found)}, is right" if found else ""
