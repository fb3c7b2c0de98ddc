"""Base class of engines with a KV cache: sessions, prompts, answers and outlines over a `CachedSequence`."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud_bridge.outline import outline_messages
from cloud_bridge.server.engines.cached_sequence import CachedSequence
from cloud_bridge.server.engines.sampling import choose
from cloud_bridge.server.engines.sketch import OUTLINE_TOKENS, SketchWords, write_outline
from cloud_bridge.server.errors import RefusalError
from cloud_bridge.wire import MAX_ROWS, Reason
from edge_runtime.cloud import AnswerPiece
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify
from edge_runtime.privacy.messages import AnswerRequest
from edge_runtime.text.prompt_form import PlainForm
from edge_runtime.text.tokenizer import Tokenizer

CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>")
"""Common tokens that end a chat turn; model files often do not list them."""


@dataclass(eq=False, slots=True)
class ScoringState:
    """A session: the prompt, the cloud's copy of the answer, and the model's KV cache of both."""

    prompt: list[int]
    sequence: CachedSequence
    answer: list[int] = field(default_factory=list)


class CachedEngine(ABC):
    """Implements `cloud_bridge.server.engines.protocol.Engine` except for the model itself.

    Attributes:
        model, vocab_size, context_length, tokenizer_fingerprint: see `Engine`.
        known: the ids that both the model and its tokenizer have; rows offer no others.
    """

    def __init__(
        self, *, name: str, tokenizer: Any, model_vocabulary: int, context_length: int, ends: frozenset[int]
    ) -> None:
        """Serve a model of `model_vocabulary` ids under `name`.

        Args:
            name: the model's name for clients.
            tokenizer: a `tokenizers.Tokenizer`.
            model_vocabulary: width of the model's logits; ids without a token are padding and never returned.
            context_length: maximum length of prompt and answer together.
            ends: tokens that end an answer, in addition to `CHAT_ENDS`.
        """
        read = Tokenizer(tokenizer)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.model = name
        self.known = KnownTokens.of(read.ids_below(model_vocabulary))
        self.vocab_size = self.known.size
        self.context_length = context_length
        self.tokenizer_fingerprint = read.fingerprint
        self._tokenizer = tokenizer
        self._read = read
        self._ends = ends | {vocabulary[token] for token in CHAT_ENDS if token in vocabulary}
        self._sketch_words: SketchWords | None = None

    def open(self, instruction: str) -> ScoringState:
        """See `Engine.open`."""
        return ScoringState(self._prompt(_user(instruction), room=0), self._new_sequence(single_rows=False))

    def prompt_tokens(self, state: ScoringState) -> int:
        """See `Engine.prompt_tokens`."""
        return len(state.prompt)

    def prepare(
        self, state: ScoringState, *, keep: int, tokens: Sequence[int], rows: Sequence[int]
    ) -> Generator[None, None, None]:
        """See `Engine.prepare`."""
        answer = self._checked_answer(state, keep, tokens, rows)
        if rows:
            token_ids = state.prompt + answer
            yield from state.sequence.read(token_ids[: len(state.prompt) + rows[0] - 1])

    def score(
        self, state: ScoringState, *, keep: int, tokens: Sequence[int], rows: Sequence[int], form: RowFormat
    ) -> list[SparseLogProbs]:
        """See `Engine.score`."""
        answer = self._checked_answer(state, keep, tokens, rows)
        found: list[SparseLogProbs] = []
        if rows:
            # Row p is computed at the token before it.
            behind = [len(state.prompt) + row - 1 for row in rows]
            log_probs = state.sequence.log_probs(state.prompt + answer, behind)
            found = [sparsify(row, form) for row in log_probs]
        state.answer = answer
        return found

    def cache_bytes(self, state: ScoringState) -> int:
        """See `Engine.cache_bytes`."""
        return state.sequence.cache_bytes

    def drop_cache(self, state: ScoringState) -> None:
        """See `Engine.drop_cache`."""
        state.sequence.clear()

    def close(self, state: ScoringState) -> None:
        """See `Engine.close`."""
        state.sequence.clear()

    def answer(self, request: AnswerRequest) -> Generator[AnswerPiece | None, None, None]:
        """See `Engine.answer`."""
        from tokenizers.decoders import DecodeStream

        prompt = self._prompt(_user(request.instruction), room=1)
        room = min(request.max_new_tokens, self.context_length - len(prompt))
        sequence = self._new_sequence(single_rows=True)
        rng = np.random.Generator(np.random.PCG64(request.seed))
        decoder = DecodeStream(skip_special_tokens=True)
        written: list[int] = []
        waiting: list[int] = []
        text = ""
        finish_reason = "length"
        row = yield from sequence.feed_in_turns(0, prompt)
        while len(written) < room:
            token = choose(row, request.temperature, request.top_p, rng)
            if token in self._ends:
                finish_reason = "stop"
                break
            written.append(token)
            waiting.append(token)
            piece = decoder.step(self._tokenizer, token)
            if piece:
                text += piece
                yield AnswerPiece(piece, tuple(waiting))
                waiting = []
            if len(written) < room:
                row = sequence.feed(len(sequence.token_ids), [token])
        # Send the text that the decoder held back, without a character that the token limit cut in two.
        whole: str = self._tokenizer.decode(written, skip_special_tokens=True)
        rest = whole[len(text) :].rstrip("\ufffd") if whole.startswith(text) else ""
        yield AnswerPiece(rest, tuple(waiting), finish_reason, len(prompt))

    def sketch(self, instruction: str) -> Generator[str | None, None, None]:
        """See `Engine.sketch`."""
        if self._sketch_words is None:
            self._sketch_words = SketchWords.of(self._tokenizer, self.vocab_size, self._ends)
        prompt = self._prompt(outline_messages(instruction), room=OUTLINE_TOKENS)
        sequence = self._new_sequence(single_rows=True)
        yield from write_outline(prompt, sequence.feed_in_turns, self._sketch_words)

    @abstractmethod
    def _new_sequence(self, *, single_rows: bool) -> CachedSequence:
        """Make an empty sequence; with `single_rows`, its rows may depend on how the tokens are batched."""

    @abstractmethod
    def _render(self, messages: list[dict[str, str]]) -> str | None:
        """Render a chat in the model's own template, ready for an answer; None if the model has no template."""

    def _prompt(self, messages: list[dict[str, str]], room: int) -> list[int]:
        """Encode a chat, ready for an answer of at least `room` tokens."""
        text = self._render(messages)
        if text is None:
            plain = PlainForm()
            ids = plain.encode(self._read, plain.render(messages))
        else:
            ids = self._read.encode(text)
        if not ids:
            raise RefusalError(Reason.INTERNAL, "the model's chat template gives an empty prompt")
        if len(ids) + room > self.context_length:
            raise RefusalError(Reason.CONTEXT_FULL, f"the instruction has {len(ids)} tokens, {self.context_length} fit")
        return ids

    def _checked_answer(self, state: ScoringState, keep: int, tokens: Sequence[int], rows: Sequence[int]) -> list[int]:
        if not 0 <= keep <= len(state.answer):
            raise RefusalError(
                Reason.BAD_REQUEST, f"keep {keep} is above the {len(state.answer)} tokens of the session"
            )
        if not self.known.has(tokens):
            raise RefusalError(Reason.BAD_REQUEST, f"a token is not in the vocabulary of {self.vocab_size}")
        answer = [*state.answer[:keep], *tokens]
        if rows and (rows[0] < 0 or rows[-1] > len(answer)):
            raise RefusalError(Reason.BAD_REQUEST, f"a row is above {len(answer)}")
        # `score` can't yield to other sessions between rows, so rows may not be far apart in a long answer.
        if rows and rows[-1] - rows[0] >= MAX_ROWS:
            raise RefusalError(Reason.BAD_REQUEST, f"the rows lie further apart than {MAX_ROWS}")
        if any(later <= earlier for earlier, later in itertools.pairwise(rows)):
            raise RefusalError(Reason.BAD_REQUEST, "rows are not ascending")
        if len(state.prompt) + len(answer) > self.context_length:
            raise RefusalError(
                Reason.CONTEXT_FULL, f"{len(state.prompt) + len(answer)} tokens, {self.context_length} fit"
            )
        return answer


def _user(instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": instruction}]
