"""Writes answers with a Hugging Face model, causal or encoder-decoder, in batches, by beam search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from edge_runtime.adapters.store import directory_name
from edge_runtime.text.tokenizer import Tokenizer
from personalization.adapters.trained_adapter import load_adapter
from personalization.answering.token_counter import TokenizerCounter
from personalization.answering.writer import WriterSpec, first_line
from personalization.errors import SettingsError
from personalization.models.base_model import Base

# The special tokens from a model's own settings. Its other settings (sampling, penalties) are not LaMP's.
_SPECIAL = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


class _LineIsOver(StoppingCriteria):
    """Ends an answer after its first line with text."""

    def __init__(self, tokenizer: Tokenizer, first: int) -> None:
        """Start checking at the token with index `first`."""
        self._tokenizer, self._first = tokenizer, first

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:  # noqa: ARG002 (protocol)
        """Return which answers are finished: (n) bool, from (n, tokens) ids."""
        texts = (self._tokenizer.decode(row) for row in input_ids[:, self._first :].tolist())
        return torch.tensor(["\n" in text.lstrip() for text in texts], device=input_ids.device)


class TorchWriter:
    """See `personalization.answering.writer.AnswerWriter`."""

    def __init__(self, spec: WriterSpec) -> None:
        """Load a model.

        Raises:
            CogenesisError: the model can't be loaded, or the device can't be used.
        """
        self._spec = spec
        base = self._base = Base(spec.source, spec.threads, spec.device)
        own = base.model.generation_config
        start = getattr(own, "decoder_start_token_id", None)
        special = {name: getattr(own, name, None) for name in _SPECIAL}
        # transformers 5 gives this field to models that decode from an encoder alone.
        first = getattr(base.model.config, "decoder_start_token_id", None)
        special["decoder_start_token_id"] = first if start is None else start
        rows = int(base.model.config.vocab_size)
        known = set(base.writer.tokenizer.ids_below(rows).tolist())
        unknown = [token for token in range(rows) if token not in known]
        self._padding = base.stops[0] if base.stops else 0
        # Replaces the model's own settings, from which `generate` takes everything that a call does not set.
        base.model.generation_config = GenerationConfig(
            max_new_tokens=spec.most_tokens,
            num_beams=spec.beams,
            do_sample=False,
            eos_token_id=list(base.stops) or None,
            pad_token_id=self._padding,
            suppress_tokens=unknown or None,
            # A beam's score is then the probability in a model without these ids.
            renormalize_logits=bool(unknown),
            **special,
        )
        self.tokens = TokenizerCounter(base.writer.tokenizer)
        self.added_tokens = base.writer.added_tokens

    def write(self, prompts: Sequence[str], user: str | None) -> list[str]:
        """See `AnswerWriter.write`; the prompts form one batch.

        Raises:
            TrainingError: the user has no adapter, or it is damaged or belongs to another base.
            SettingsError: a prompt leaves no room for its answer.
        """
        ids, mask = self._padded([self._base.writer.prompt(prompt) for prompt in prompts])
        first = 1 if self._base.seq2seq else ids.shape[1]
        with self._adapter(user), torch.inference_mode():
            written = self._base.model.generate(
                input_ids=ids, attention_mask=mask, stopping_criteria=StoppingCriteriaList(self._enough(first))
            )
        return [self._text(row) for row in written[:, first:].tolist()]

    def _padded(self, prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, (prompts, longest prompt) int64: padded left for a decoder, right for an encoder-decoder."""
        longest = max(map(len, prompts))
        fits = self._base.context_length
        needed = longest + (0 if self._base.seq2seq else self._spec.most_tokens)
        if fits is not None and needed > fits:
            raise SettingsError(
                f"Prompt and answer take {needed:,} tokens, the model's context has {fits:,}: {self._spec.source}. "
                "Lower `max_length` or `most_tokens`."
            )
        ids = torch.full((len(prompts), longest), self._padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(0, len(prompt)) if self._base.seq2seq else slice(longest - len(prompt), longest)
            ids[row, place] = torch.tensor(prompt)
            mask[row, place] = 1
        return ids.to(self._base.device), mask.to(self._base.device)

    def _enough(self, first: int) -> list[StoppingCriteria]:
        """Criteria that end answers early. Only with greedy decoding: a beam's score needs all of its tokens."""
        if not self._spec.one_line or self._spec.beams > 1:
            return []
        return [_LineIsOver(self._base.writer.tokenizer, first)]

    def _text(self, written: list[int]) -> str:
        stops = set(self._base.stops)
        end = next((at for at, token in enumerate(written) if token in stops), len(written))
        text = self._base.writer.tokenizer.decode(written[:end])
        return first_line(text) if self._spec.one_line else text.strip()

    @contextmanager
    def _adapter(self, user: str | None) -> Iterator[None]:
        if user is None or self._spec.adapters is None:
            yield
            return
        config, state = load_adapter(self._spec.adapters / directory_name(user), self._spec.identity)
        with self._base.saved_adapter(config, state):
            yield
