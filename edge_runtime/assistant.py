"""The runtime's front: a loaded bundle that writes answers in four modes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime.adapters.adapter import Adapter, load_adapter
from edge_runtime.adapters.store import ADAPTERS_DIRECTORY, AdapterStore
from edge_runtime.answer import Answer, Progress
from edge_runtime.bundle.reader import Bundle, open_bundle
from edge_runtime.cloud import Cloud
from edge_runtime.context import PrivateContext, PublicInstruction, joined
from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.protocol import Decoder
from edge_runtime.errors import CloudError, CogenesisError, PolicyError, RequestError
from edge_runtime.fusion.combiner import Combiner
from edge_runtime.fusion.combiner_file import combiner_of
from edge_runtime.fusion.fuse import Strategy
from edge_runtime.generation.cloud_link import CloudLink
from edge_runtime.generation.drafter import PromptedDecoder
from edge_runtime.generation.loop import generate
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.schedule import LearnedSchedule
from edge_runtime.privacy.gate import Gate, Policy, Released
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.privacy.messages import OpenRequest
from edge_runtime.text.chat_template import ChatTemplate
from edge_runtime.text.prompt import Prompt, build_prompt
from edge_runtime.text.stream import StopFilter, TextStream
from edge_runtime.text.tokenizer import Tokenizer


def load(
    bundle: Path | str,
    backend: str | None = None,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    verify: bool = True,
    adapters: Path | str | None = None,
) -> Assistant:
    """Load a bundle.

    Args:
        bundle: its directory.
        backend: "onnx" or "executorch"; None takes the bundle's first.
        threads: for the decoder; None takes the number of physical cores.
        context_length: positions to use, at most the bundle's; None takes the bundle's.
        verify: compare all files with the manifest's hashes first.
        adapters: directory of users' adapters; None takes the bundle's own.

    Raises:
        BundleError: something in the bundle is missing, damaged, unsafe or from another version.
    """
    opened = open_bundle(bundle, verify=verify)
    # The tokenizer is parsed while onnxruntime, which needs no interpreter for it, loads the graph.
    with ThreadPoolExecutor(max_workers=1) as pool:
        tokenizer = pool.submit(Tokenizer.load, opened.path(opened.manifest.tokenizer.path))
        decoder = open_decoder(opened, backend, threads=threads, context_length=context_length)
        root = opened.root / ADAPTERS_DIRECTORY if adapters is None else Path(adapters)
        return Assistant(opened, decoder, tokenizer.result(), AdapterStore(root, opened.base))


@dataclass(frozen=True, slots=True)
class _Work:
    """One answer to write."""

    instruction: PublicInstruction
    context: PrivateContext | None
    options: Options
    progress: Progress


class Assistant:
    """Writes answers with one bundle, one at a time; the KV cache of the last prompt is kept and reused."""

    def __init__(
        self, bundle: Bundle, decoder: Decoder, tokenizer: Tokenizer, adapters: AdapterStore | None = None
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.adapters = adapters or AdapterStore(bundle.root / ADAPTERS_DIRECTORY, bundle.base)
        self.tokenizer = tokenizer
        self._template = ChatTemplate(
            manifest.chat_template, bos_token=manifest.tokenizer.bos_token, eos_token=manifest.tokenizer.eos_token
        )
        self._decoder = decoder
        self._without: Decoder | None = None
        self._adapter: Adapter | None = None
        self._combiner: Combiner | None = None
        self._busy = threading.Lock()

    @property
    def decoder(self) -> Decoder:
        """The decoder of the sequence with the private context, for its prompt cache."""
        return self._decoder

    def use_adapter(self, adapter: Adapter | Path | str | None) -> None:
        """Use a user's adapter (or a file of one) from the next answer on; None uses none.

        Raises:
            AdapterError: it can't be read, or belongs to another base.
        """
        with self._exclusive():
            self._use(load_adapter(adapter) if isinstance(adapter, Path | str) else adapter)

    def use_user(self, user: str | None) -> None:
        """Answer for a user from the next answer on: with their adapter out of `adapters`; None uses none.

        Raises:
            AdapterError: the user has none, or it is damaged, or belongs to another base.
        """
        with self._exclusive():
            self._use(None if user is None else self.adapters.load(user))

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
            instruction: what the user asks; the only text that may leave the device.
            context: what the device alone may see; unused in mode cloud.
            mode: who writes, see `Mode`.
            cloud: a connection (`cloud_bridge.connect`); every mode but edge needs one.
            options: settings; None takes the defaults.
            ledger: where to note what leaves; None keeps it in memory.

        Returns:
            The answer, to iterate over. Errors come with the first piece: `ContextOverflowError` if profile and
            instruction don't fit, a `CloudError` if the cloud fails before its first row, `PolicyError` if the
            policy forbids the mode. If the cloud falls away later, the answer is finished on the device and
            `result.cloud_error` says why.

        Raises:
            RequestError: the mode needs a cloud and none was given, or does not exist.
            BundleError: fusion or schedule are learned, and the bundle has no combiner that can be used.
        """
        if type(instruction) is not PublicInstruction:
            raise RequestError("The instruction must be a PublicInstruction, so that private text can't be one.")
        try:
            mode = Mode(mode)
        except ValueError:
            raise RequestError(f"There is no mode '{mode}'. Use one of: {', '.join(Mode)}.") from None
        if mode.needs_cloud and cloud is None:
            raise RequestError(f"Mode {mode} needs a cloud. Give --cloud HOST:PORT, or use --mode edge.")
        ledger = ledger if ledger is not None else Ledger()
        progress = Progress(mode, ledger)
        options = options or Options()
        if mode is Mode.FUSED:
            options = self._with_combiner(options)
        work = _Work(instruction, context, options, progress)
        # In mode edge the cloud is out of reach of what follows, whatever was passed.
        return Answer(self._write(work, cloud if mode.needs_cloud else None), progress)

    def prompt(
        self,
        instruction: PublicInstruction,
        context: PrivateContext | None = None,
        *,
        outline: str | None = None,
        max_new_tokens: int = 256,
    ) -> Prompt:
        """The prompt that an answer of `max_new_tokens` continues; see `edge_runtime.text.prompt.build_prompt`.

        Raises:
            ContextOverflowError: profile and instruction don't fit.
        """
        room = self._decoder.context_length - max_new_tokens
        return build_prompt(self.tokenizer, self._template, instruction, context, outline, max_tokens=room)

    def _with_combiner(self, options: Options) -> Options:
        """The options with the bundle's combiner where they need one and bring none of their own.

        Raises:
            BundleError: the bundle has none, or it is damaged or made for another model.
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

    def _use(self, adapter: Adapter | None) -> None:
        self._decoder.use_adapter(adapter)
        self._adapter = adapter

    def _write(self, work: _Work, cloud: Cloud | None) -> Generator[str, None, None]:
        gate = Gate(work.options.policy, work.progress.ledger)
        with self._exclusive():
            work.progress.begin()
            if cloud is None:
                yield from self._write_here(work, self._prompt(work))
            elif work.progress.mode is Mode.CLOUD:
                yield from self._write_there(work, cloud, gate)
            elif work.progress.mode is Mode.SKETCH:
                lines = cloud.sketch(gate.sketch(work.instruction))
                work.progress.cancelled.add_done_callback(lambda _: lines.close())
                work.progress.outline = "".join(lines).strip()
                work.progress.link.round_trips = 1
                yield from self._write_here(work, self._prompt(work, work.progress.outline))
            else:
                yield from self._write_fused(work, cloud, gate)

    def _write_fused(self, work: _Work, cloud: Cloud, gate: Gate) -> Generator[str, None, None]:
        manifest, options, progress = self.bundle.manifest, work.options, work.progress

        def open_request(resume: str) -> Released[OpenRequest]:
            return gate.open(
                work.instruction,
                tokenizer_fingerprint=manifest.tokenizer.fingerprint,
                rows=options.row_format,
                resume=resume,
            )

        prompt = self._prompt(work)
        without = None
        if options.fusion.needs_without:
            self._without = self._without or self._decoder.fork()
            self._without.use_adapter(self._adapter)
            unaware = self.prompt(work.instruction, max_new_tokens=options.max_new_tokens)
            without = PromptedDecoder(self._without, unaware.token_ids)
        link = CloudLink(
            cloud,
            open_request,
            gate.conversation(work.instruction, self._unsaid(work), self.tokenizer),
            options.schedule,
            manifest.vocab_size,
            options.patience,
            progress.measured,
            cancelled=progress.cancelled,
            counts=progress.link,
        )
        try:
            yield from self._write_here(work, prompt, without, link)
        finally:
            link.close()
            progress.cloud_error = str(link.error or "")

    def _unsaid(self, work: _Work) -> PrivateContext | None:
        """What the cloud must not learn: the context, and what the adapter was trained on.

        Raises:
            PolicyError: nobody knows what the adapter was trained on, so nothing can keep it from the cloud.
        """
        adapter = self._adapter
        if adapter is None or work.options.policy is not Policy.GUARDED:
            return work.context
        if adapter.learned is None:
            raise PolicyError(
                f"The adapter '{adapter.name}' does not say what it was trained on, so the policy guarded can't keep "
                "that from the cloud. Export it again with --learned FILE, or use --policy open."
            )
        return joined(work.context or PrivateContext(), adapter.learned)

    def _write_here(
        self, work: _Work, prompt: Prompt, without: PromptedDecoder | None = None, link: CloudLink | None = None
    ) -> Generator[str, None, None]:
        work.progress.prompt_tokens = len(prompt.token_ids)
        work.progress.dropped_history = len(prompt.dropped)
        work.progress.prompt_is_ready()
        edge = PromptedDecoder(self._decoder, prompt.token_ids)
        yield from self._stream(work, edge, without, link, limit=work.options.max_new_tokens)

    def _write_there(self, work: _Work, cloud: Cloud, gate: Gate) -> Generator[str, None, None]:
        options, progress = work.options, work.progress
        request = gate.answer(
            work.instruction,
            max_new_tokens=options.max_new_tokens,
            temperature=options.sampling.temperature,
            top_p=options.sampling.top_p,
            seed=options.sampling.seed,
        )
        progress.prompt_is_ready()
        progress.link.round_trips = 1
        stop = StopFilter(options.stop)
        pieces = cloud.answer(request)
        progress.cancelled.add_done_callback(lambda _: pieces.close())
        try:
            for piece in pieces:
                progress.prompt_tokens = piece.prompt_tokens or progress.prompt_tokens
                for token_id in piece.token_ids:
                    progress.token(token_id, fused=False)
                text = stop.push(piece.text) + (stop.flush() if piece.finish_reason else "")
                progress.finish_reason = "stop" if stop.stop_string else piece.finish_reason
                if text:
                    progress.pieces.append(text)
                    yield text
                if progress.finish_reason:
                    break
        except CloudError as error:
            if not progress.pieces:
                raise
            if progress.cancelled.done():
                return
            progress.cloud_error = str(error)
        if held := stop.flush():
            progress.pieces.append(held)
            yield held
        if not progress.finish_reason:
            yield from self._finish_for_cloud(work)

    def _finish_for_cloud(self, work: _Work) -> Generator[str, None, None]:
        written = self.tokenizer.encode("".join(work.progress.pieces))
        edge = PromptedDecoder(self._decoder, (*self._prompt(work).token_ids, *written))
        # The cloud's tokens may be another tokenizer's: the text can be longer in ours.
        left = work.options.max_new_tokens - len(work.progress.token_ids)
        left = min(left, self._decoder.context_length - len(edge.prompt))
        if left < 1:
            work.progress.finish_reason = "length"
            return
        yield from self._stream(work, edge, None, None, limit=left)

    def _stream(
        self, work: _Work, edge: PromptedDecoder, without: PromptedDecoder | None, link: CloudLink | None, limit: int
    ) -> Generator[str, None, None]:
        options, progress = work.options, work.progress
        text = TextStream(self.tokenizer, stop_strings=options.stop)
        ends = self.bundle.manifest.tokenizer.stop_token_ids
        tokens = generate(
            edge, without, link, options, progress.measured, limit=limit, ends=ends, cancelled=progress.cancelled.done
        )
        with closing(tokens):
            for count, token in enumerate(tokens, start=1):
                if token.id in ends:
                    progress.mark_token()
                    progress.finish_reason = "stop"
                    break
                progress.token(token.id, fused=token.fused)
                piece = text.push(token.id)
                if piece:
                    progress.pieces.append(piece)
                    yield piece
                if text.stopped or count == limit:
                    progress.finish_reason = "stop" if text.stopped else "length"
                    break
        rest = text.flush()
        if rest:
            progress.pieces.append(rest)
            yield rest

    def _prompt(self, work: _Work, outline: str | None = None) -> Prompt:
        return self.prompt(work.instruction, work.context, outline=outline, max_new_tokens=work.options.max_new_tokens)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise CogenesisError("This assistant is writing another answer. Finish or close that one first.")
        try:
            yield
        finally:
            self._busy.release()
