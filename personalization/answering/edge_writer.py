"""Writes answers with a bundle on the edge runtime, just as a device does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from edge_runtime.adapters.store import ADAPTERS_DIRECTORY, AdapterStore
from edge_runtime.assistant import Assistant
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.context import PublicInstruction
from edge_runtime.decoders.open import open_decoder
from edge_runtime.generation.options import Options
from edge_runtime.text.tokenizer import Tokenizer
from personalization.answering.token_counter import TokenizerCounter
from personalization.answering.writer import WriterSpec, first_line


class EdgeWriter:
    """See `personalization.answering.writer.AnswerWriter`."""

    def __init__(self, spec: WriterSpec) -> None:
        """Load a bundle.

        Raises:
            BundleError: it is damaged, or has no decoder of the backend.
        """
        bundle = open_bundle(spec.source)
        tokenizer = Tokenizer.load(bundle.path(bundle.manifest.tokenizer.path))
        # Other workers may share the cores, which threads that wait awake would starve.
        decoder = open_decoder(bundle, spec.backend, threads=spec.threads, spin=False)
        store = AdapterStore(spec.adapters or bundle.root / ADAPTERS_DIRECTORY, bundle.base)
        self._assistant = Assistant(bundle, decoder, tokenizer, store)
        self._options = Options(max_new_tokens=spec.most_tokens)
        self._one_line = spec.one_line
        self.tokens = TokenizerCounter(tokenizer)
        self.added_tokens = 0

    def write(self, prompts: Sequence[str], user: str | None) -> list[str]:
        """See `AnswerWriter.write`.

        Raises:
            AdapterError: the user has no adapter, or it is damaged or of another base.
            ContextOverflowError: a prompt leaves no room for its answer.
        """
        self._assistant.use_user(user)
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        # What is in the cache was computed in parts of other lengths, which round otherwise.
        self._assistant.decoder.rewind(0)
        text = ""
        with closing(self._assistant.generate(PublicInstruction(prompt), options=self._options)) as answer:
            for piece in answer:
                text += piece
                if self._one_line and "\n" in text.lstrip():
                    break
        return first_line(text) if self._one_line else text.strip()
