"""A retriever selector (RSPG, Salemi et al., 2024): an encoder and a linear head that score what retrievers led to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from edge_runtime.retrieval.selector_card import SELECTOR_NAME, SelectorCard, SelectorMode, read_selector_card
from edge_runtime.retrieval.selector_tokens import candidate_tokens
from export.errors import SourceError
from personalization.errors import SettingsError
from personalization.models.text_encoder import Encoder

_HEAD_NAME = "head.safetensors"
_MOST_TOKENS = 512
"""Of a candidate, where the encoder itself sets no limit."""


class ScoringModule(torch.nn.Module):
    """An encoder with one output: the higher, the better the candidate."""

    def __init__(self, pooling: torch.nn.Module, dimension: int) -> None:
        """Put a head of zeros on an encoder: untrained, all candidates are equal, and the first is taken."""
        super().__init__()
        self.pooling = pooling
        self.head = torch.nn.Linear(dimension, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Score texts: (n, length) int64 ids and mask -> (n,) float32."""
        scores: torch.Tensor = self.head(self.pooling(input_ids, attention_mask)).squeeze(-1)
        return scores


class Selector:
    """Scores candidates by their prompts, or by prompts and outputs."""

    def __init__(self, encoder: Encoder, card: SelectorCard) -> None:
        """Put an untrained head on an encoder.

        Raises:
            SettingsError: the encoder takes fewer tokens than the card says.
        """
        if encoder.max_tokens is not None and card.max_tokens > encoder.max_tokens:
            raise SettingsError(
                f"The encoder takes {encoder.max_tokens} tokens, not {card.max_tokens}. Lower --max-tokens."
            )
        self.encoder, self.card = encoder, card
        self.module = ScoringModule(encoder.pooling, encoder.dimension).to(encoder.device)
        self.tokenizer: Tokenizer = _plain_tokenizer(encoder.tokenizer)

    @classmethod
    def new(
        cls, path: Path, mode: SelectorMode, retrievers: Sequence[str], max_tokens: int | None, device: str
    ) -> Selector:
        """An untrained selector on an encoder's directory; `max_tokens` None: as many as the encoder takes.

        Raises:
            ExportError: the encoder can't be loaded.
            SettingsError: it takes fewer tokens.
        """
        encoder = Encoder.load(path, device)
        return cls(encoder, SelectorCard(mode, tuple(retrievers), max_tokens or encoder.max_tokens or _MOST_TOKENS))

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Selector:
        """Load a trained selector's directory.

        Raises:
            CogenesisError: it is incomplete or damaged.
        """
        card = read_selector_card(path)
        selector = cls(Encoder.load(path, device), card)
        try:
            selector.module.head.load_state_dict(safetensors.torch.load_file(path / _HEAD_NAME))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SourceError(f"The selector's head can't be read: {path / _HEAD_NAME} ({reason}).") from None
        selector.module.eval()
        return selector

    def save(self, directory: Path) -> None:
        """Write a directory that `load` reads.

        Raises:
            OSError: it can't be written.
        """
        self.encoder.save(directory)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.head.state_dict().items()}
        safetensors.torch.save_file(head, directory / _HEAD_NAME)
        (directory / SELECTOR_NAME).write_text(self.card.json(), encoding="utf-8")

    def tokens(self, prompt: str, output: str) -> list[int]:
        """Token ids of a candidate; the output counts after generation only."""
        answer = output if self.card.mode is SelectorMode.POST else None
        # A template may add nothing to an empty text; devices take the same token for it.
        return candidate_tokens(self.tokenizer, prompt, answer, self.card.max_tokens) or [0]

    def scores(self, candidates: Sequence[list[int]]) -> torch.Tensor:
        """Scores of some candidates' token ids, in one pass that gradients flow through: (n,) float32."""
        scores: torch.Tensor = self.module(**self.encoder.padded(candidates))
        return scores


def _plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """A copy that cuts and pads nothing."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain
