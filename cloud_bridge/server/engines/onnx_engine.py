"""The engine for hosts without a GPU: onnxruntime runs a device bundle as the cloud model.

Rows do not depend on how tokens were batched: not on windows, rewinding, resuming or evicted caches. Kernels compute a
single row in another order than several rows, so its last bits differ. With 2 to `PART` rows, every row is the same,
bit for bit (tested on each kind of graph). Therefore every call has 2 to `PART` rows, in the model's body and head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud_bridge.server.engines.cached_engine import CachedEngine
from cloud_bridge.server.engines.cached_sequence import CachedSequence
from cloud_bridge.server.errors import ServeError
from edge_runtime.bundle.manifest import BACKEND_ONNX, DecoderSpec
from edge_runtime.bundle.reader import Bundle, open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.protocol import Decoder
from edge_runtime.errors import BundleError
from edge_runtime.fusion.known_tokens import IMPOSSIBLE, KnownTokens
from edge_runtime.text.prompt_form import prompt_form_of
from edge_runtime.text.tokenizer import Tokenizer

PART = 64
"""Rows per call. More would not be faster, and others wait meanwhile: a seventh of a second for 135M parameters."""
_PAGE = 4096


class OnnxSequence(CachedSequence):
    """See `CachedSequence`; each sequence has its own decoder while it caches any tokens."""

    def __init__(self, model: Decoder, spec: DecoderSpec, known: KnownTokens, *, single_rows: bool) -> None:
        """Run forks of `model`, which `spec` describes.

        Args:
            model: an open decoder.
            spec: description of its graph.
            known: the ids that rows may offer.
            single_rows: allow calls with a single token, which are a fifth faster; rows then depend on batching.
        """
        super().__init__(PART)
        self._single_rows = single_rows
        self._model = model
        self._spec = spec
        self._known = known
        self._decoder: Decoder | None = None
        self._reached = 0  # maximum length so far; its memory stays allocated

    @property
    def cache_bytes(self) -> int:
        """Size of the KV cache; its buffers use memory up to the maximum length so far."""
        pages = -(-self._reached * self._spec.head_dim * 4 // _PAGE)
        return 2 * self._spec.layers * self._spec.kv_heads * pages * _PAGE

    def _feed(self, token_ids: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        if self._decoder is None:
            self._decoder = self._model.fork()
        if len(token_ids) == 1 and not self._single_rows:
            return self._feed_beside_another(self._decoder, token_ids[0], rows)
        found = np.empty((len(rows), self._known.size), np.float32)
        done = filled = 0
        for part in np.array_split(np.array(token_ids), -(-len(token_ids) // PART)):
            wanted = [row - done for row in rows if 0 <= row - done < len(part)]
            found[filled : filled + len(wanted)] = self._run(self._decoder, part.tolist(), wanted)
            filled += len(wanted)
            done += len(part)
        return found

    def _feed_beside_another(self, decoder: Decoder, token_id: int, rows: Sequence[int]) -> NDArray[np.float32]:
        """Append one token with a call of two rows: repeat the previous token, or at the start this token."""
        if decoder.length == 0:
            found = self._run(decoder, [token_id, token_id], rows)
            decoder.rewind(1)
            return found
        before = self.token_ids[-1]
        decoder.rewind(decoder.length - 1)
        return self._run(decoder, [before, token_id], [row + 1 for row in rows])

    def _run(self, decoder: Decoder, token_ids: Sequence[int], wanted: Sequence[int]) -> NDArray[np.float32]:
        """Make one call; returns the log-probabilities after the tokens at the indices `wanted`."""
        self._reached = max(self._reached, decoder.length + len(token_ids))
        fewest = 1 if self._single_rows else 2
        asked = max(len(token_ids) - wanted[0], fewest) if wanted else 0
        logits = decoder.extend(token_ids, asked)
        first = len(token_ids) - asked
        found = np.empty((len(wanted), self._known.size), np.float32)
        for index, row in enumerate(wanted):
            # One row at a time, so that no sum depends on other rows.
            found[index] = self._known.log_probs(logits[row - first], IMPOSSIBLE)
        return found

    def _crop(self, length: int) -> None:
        if length == 0:
            self._decoder, self._reached = None, 0
        elif self._decoder is not None:
            self._decoder.rewind(length)


class OnnxEngine(CachedEngine):
    """Implements `cloud_bridge.server.engines.protocol.Engine`."""

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder,
        tokenizer: Tokenizer,
        template_variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Serve an opened bundle; every session is a fork of `decoder`.

        Raises:
            BundleError: the chat template can't be used.
            RequestError: the chat template does not use a variable.
        """
        manifest = bundle.manifest
        super().__init__(
            name=manifest.model.id,
            tokenizer=tokenizer.backend,
            model_vocabulary=manifest.vocab_size,
            context_length=decoder.context_length,
            ends=frozenset(manifest.tokenizer.stop_token_ids),
        )
        self._model = decoder
        self._spec = bundle.decoder(BACKEND_ONNX)
        form = prompt_form_of(manifest, template_variables)
        self._template = form if manifest.chat_template else None

    def _new_sequence(self, *, single_rows: bool) -> OnnxSequence:
        return OnnxSequence(self._model, self._spec, self.known, single_rows=single_rows)

    def _render(self, messages: list[dict[str, str]]) -> str | None:
        return None if self._template is None else self._template.render(messages)


def load_onnx_engine(
    bundle: str, threads: int | None = None, template_variables: Mapping[str, Any] | None = None
) -> OnnxEngine:
    """Load a bundle made by `cogenesis export onnx`, of any model and quantization.

    Args:
        bundle: the bundle's directory.
        threads: threads per matrix product; None uses all available cores (at most 8).
        template_variables: variables of the chat template; they replace or join those that the bundle records.

    Raises:
        ServeError: the bundle does not exist, is damaged, or can't be run.
        RequestError: the chat template does not use a variable.
    """
    if threads is not None and threads < 1:
        raise ServeError(f"`threads` must be at least 1, not {threads}.")
    try:
        opened = open_bundle(bundle)
        tokenizer = Tokenizer.load(opened.path(opened.manifest.tokenizer.path))
        # Spinning threads would slow down clients on the same machine.
        decoder = open_decoder(opened, BACKEND_ONNX, threads=threads, spin=False)
        return OnnxEngine(opened, decoder, tokenizer, template_variables)
    except BundleError as error:
        raise ServeError(f"The bundle can't be served. {error}") from None
