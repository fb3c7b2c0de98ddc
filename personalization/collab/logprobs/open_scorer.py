"""Opens the scorer that a specification names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.decoders.protocol import Decoder
from edge_runtime.text.prompt_form import prompt_form_of
from edge_runtime.text.tokenizer import Tokenizer
from personalization.collab.logprobs.model_spec import ModelSpec
from personalization.collab.logprobs.scorer import RowScorer


def open_scorer(spec: ModelSpec, *, for_cloud: bool = False) -> RowScorer:
    """Load a model.

    Quantised kernels round a single row differently than several rows. So a bundle's rows are computed one by one, as
    on a device, or together, as in a cloud (`cloud_bridge.server.engines.onnx_engine`). They match the rows of
    generation bit for bit.

    Args:
        spec: the model.
        for_cloud: whether it scores in place of the cloud.

    Raises:
        CogenesisError: the model can't be loaded.
    """
    return _of_bundle(spec, for_cloud) if spec.is_bundle else _of_directory(spec)


def _of_bundle(spec: ModelSpec, for_cloud: bool) -> RowScorer:
    from edge_runtime.adapters.adapter import load_adapter
    from edge_runtime.bundle.reader import open_bundle
    from edge_runtime.decoders.open import open_decoder

    bundle = open_bundle(spec.source)
    # Other workers may share the cores; spinning threads would starve them.
    decoder = open_decoder(bundle, threads=spec.threads, spin=False)
    if spec.adapter is not None:
        decoder.use_adapter(load_adapter(spec.adapter))
    network = _DecoderNetwork(decoder) if for_cloud else _DeviceNetwork(decoder)
    tokenizer = Tokenizer.load(bundle.path(bundle.manifest.tokenizer.path))
    return RowScorer(network, tokenizer, prompt_form_of(bundle.manifest))


class _DecoderNetwork:
    """See `Network`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.vocab_size, self.context_length = decoder.vocab_size, decoder.context_length

    def logits(self, token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        self._decoder.rewind(0)
        return self._decoder.extend(token_ids, rows)


class _DeviceNetwork(_DecoderNetwork):
    """Feeds rows token by token, as `edge_runtime.generation.drafter` feeds answers and the end of prompts."""

    def logits(self, token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        self._decoder.rewind(0)
        if rows < len(token_ids):
            self._decoder.extend(token_ids[:-rows], rows=0)
        return np.concatenate([self._decoder.extend([token]) for token in token_ids[-rows:]])


def _of_directory(spec: ModelSpec) -> RowScorer:
    from personalization.models.libraries import prepare_libraries, require_training_libraries

    require_training_libraries()
    prepare_libraries()
    from personalization.collab.logprobs.torch_network import TorchNetwork

    network = TorchNetwork(spec)
    return RowScorer(network, network.tokenizer, network.template)
