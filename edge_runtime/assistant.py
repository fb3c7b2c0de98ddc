"""The runtime's entry point: loads a bundle and writes answers in four modes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_runtime.adapters.adapter import Adapter, load_adapter
from edge_runtime.adapters.store import ADAPTERS_DIRECTORY, AdapterStore
from edge_runtime.answer import Answer, Progress
from edge_runtime.bundle.reader import Bundle, open_bundle
from edge_runtime.cloud import Cloud
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.protocol import Decoder
from edge_runtime.errors import CogenesisError, RequestError
from edge_runtime.fusion.combiner import Combiner
from edge_runtime.fusion.combiner_file import combiner_of
from edge_runtime.fusion.fuse import Strategy
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.schedule import LearnedSchedule
from edge_runtime.loaded_model import LoadedModel
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.prompt import Prompt
from edge_runtime.text.prompt_form import prompt_form_of
from edge_runtime.text.tokenizer import Tokenizer
from edge_runtime.writing import Task, write_answer


def load(
    bundle: Path | str,
    backend: str | None = None,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    verify: bool = True,
    adapters: Path | str | None = None,
    template_variables: Mapping[str, Any] | None = None,
) -> Assistant:
    """Load a bundle.

    Args:
        bundle: directory of the bundle.
        backend: "onnx" or "executorch"; None uses the bundle's first backend.
        threads: threads of the decoder; None uses the cores that affinity and CPU quota leave, at most 8.
        context_length: positions to use, at most the bundle's number; None uses all of them.
        verify: whether to compare all files with the manifest's hashes first.
        adapters: directory of users' adapters; None uses the bundle's own directory.
        template_variables: variables of the chat template by name, such as `enable_thinking`; they replace or join
            those that the bundle records.

    Raises:
        BundleError: a file of the bundle is missing, damaged, unsafe or from another version.
        RequestError: the chat template does not use a variable.
    """
    opened = open_bundle(bundle, verify=verify)
    # The tokenizer is parsed while onnxruntime loads the graph, because loading releases the GIL.
    with ThreadPoolExecutor(max_workers=1) as pool:
        tokenizer = pool.submit(_load_tokenizer, opened)
        decoder = open_decoder(opened, backend, threads=threads, context_length=context_length)
        root = opened.root / ADAPTERS_DIRECTORY if adapters is None else Path(adapters)
        return Assistant(opened, decoder, tokenizer.result(), AdapterStore(root, opened.base), template_variables)


class Assistant:
    """Writes answers with one bundle, one at a time; it keeps and reuses the KV cache of the last prompt."""

    def __init__(
        self,
        bundle: Bundle,
        decoder: Decoder,
        tokenizer: Tokenizer,
        adapters: AdapterStore | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.adapters = adapters or AdapterStore(bundle.root / ADAPTERS_DIRECTORY, bundle.base)
        self.tokenizer = tokenizer
        known = KnownTokens.of(tokenizer.ids_below(decoder.vocab_size))
        self._model = LoadedModel(manifest, tokenizer, prompt_form_of(manifest, template_variables), decoder, known)
        self._combiner: Combiner | None = None
        self._busy = threading.Lock()

    @property
    def decoder(self) -> Decoder:
        """The decoder that holds the private context; gives access to its prompt cache."""
        return self._model.decoder

    def use_adapter(self, adapter: Adapter | Path | str | None) -> None:
        """Use an adapter, or the adapter in a file, from the next answer on; None uses no adapter.

        Raises:
            AdapterError: the adapter can't be read, or belongs to another base.
        """
        with self._exclusive():
            self._model.use_adapter(load_adapter(adapter) if isinstance(adapter, Path | str) else adapter)

    def use_user(self, user: str | None) -> None:
        """Use a user's adapter from the directory of adapters, from the next answer on; None uses no adapter.

        Raises:
            AdapterError: the user has no adapter, or it is damaged, or belongs to another base.
        """
        with self._exclusive():
            self._model.use_adapter(None if user is None else self.adapters.load(user))

    def generate(
        self,
        instruction: PublicInstruction,
        context: PrivateContext | None = None,
        *,
        mode: Mode | str = Mode.EDGE,
        cloud: Cloud | None = None,
        options: Options | None = None,
        ledger: Ledger | None = None,
    ) -> Answer:
        """Write an answer.

        Args:
            instruction: the user's request; the only text from the user that the device may send.
            context: profile and past texts, which only the device sees; unused in mode cloud.
            mode: who writes, see `Mode`.
            cloud: a connection (`cloud_bridge.connect`); every mode except edge needs one.
            options: settings; None uses the defaults.
            ledger: records every message sent and received; None keeps the records in memory.

        Returns:
            The answer, to iterate over. Requesting the first piece may raise `ContextOverflowError` if profile and
            instruction don't fit, a `CloudError` if the cloud fails before its first row, or `PolicyError` if the
            policy forbids the mode. If the cloud is lost later, the device finishes the answer and `result.cloud_error`
            says why.

        Raises:
            RequestError: the mode does not exist, or it needs a cloud and none was given.
            BundleError: fusion or schedule is learned, and the bundle has no usable combiner.
        """
        if type(instruction) is not PublicInstruction:
            raise RequestError("The instruction must be a PublicInstruction, so that private text can't be one.")
        try:
            mode = Mode(mode)
        except ValueError:
            raise RequestError(f"There is no mode '{mode}'. Use one of: {', '.join(Mode)}.") from None
        if mode.needs_cloud and cloud is None:
            raise RequestError(f"`mode` {mode} needs a cloud. Give `cloud`, or use `mode` edge.")
        ledger = ledger if ledger is not None else Ledger()
        progress = Progress(mode, ledger)
        options = options or Options()
        if mode is Mode.FUSED:
            options = self._with_combiner(options)
        task = Task(instruction, context, options, progress)
        # In mode edge, the code below never gets the cloud, whatever the caller passed.
        return Answer(self._write(task, cloud if mode.needs_cloud else None), progress)

    def prompt(
        self,
        instruction: PublicInstruction,
        context: PrivateContext | None = None,
        *,
        outline: str | None = None,
        max_new_tokens: int = 256,
    ) -> Prompt:
        """Build the prompt for an answer of up to `max_new_tokens`; see `edge_runtime.text.prompt.build_prompt`.

        Raises:
            ContextOverflowError: profile and instruction don't fit.
        """
        return self._model.prompt(instruction, context, outline, max_new_tokens)

    def _with_combiner(self, options: Options) -> Options:
        """Return the options with the bundle's combiner, if they need one and have none of their own.

        Raises:
            BundleError: the bundle has no combiner, or it is damaged or made for another model.
        """
        fusion, schedule = options.fusion, options.schedule
        if fusion.strategy is Strategy.LEARNED and fusion.combiner is None:
            fusion = replace(fusion, combiner=self._own_combiner())
        if isinstance(schedule, LearnedSchedule) and schedule.combiner is None:
            schedule = replace(schedule, combiner=self._own_combiner())
        return replace(options, fusion=fusion, schedule=schedule)

    def _own_combiner(self) -> Combiner:
        if self._combiner is None:
            self._combiner = combiner_of(self.bundle)
        return self._combiner

    def _write(self, task: Task, cloud: Cloud | None) -> Generator[str, None, None]:
        with self._exclusive():
            yield from write_answer(self._model, task, cloud)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise CogenesisError("This assistant is writing another answer. Finish or close that one first.")
        try:
            yield
        finally:
            self._busy.release()


def _load_tokenizer(bundle: Bundle) -> Tokenizer:
    tokenizer = Tokenizer.load(bundle.path(bundle.manifest.tokenizer.path))
    tokenizer.ids_below(bundle.manifest.vocab_size)
    return tokenizer
