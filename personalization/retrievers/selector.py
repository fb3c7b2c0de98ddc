"""A retriever selector (RSPG, Salemi et al., 2024): an encoder and a linear head that score retrievers' results."""

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
from personalization.errors import ModelError, SettingsError
from personalization.models.text_encoder import Encoder

_HEAD_NAME = "head.safetensors"
_MOST_TOKENS = 512
"""Maximum number of tokens per candidate if the encoder has no limit."""


class ScoringModule(torch.nn.Module):
    """An encoder with one output; a higher output means a better candidate."""

    def __init__(self, pooling: torch.nn.Module, dimension: int) -> None:
        """Add a head of zeros to an encoder: untrained, all candidates are equal, and the first is selected."""
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
        """Add an untrained head to an encoder.

        Raises:
            SettingsError: the encoder takes fewer tokens than the card says.
        """
        if encoder.max_tokens is not None and card.max_tokens > encoder.max_tokens:
            raise SettingsError(
                f"The encoder takes {encoder.max_tokens} tokens, not {card.max_tokens}. Lower `max_tokens`."
            )
        self.encoder, self.card = encoder, card
        self.module = ScoringModule(encoder.pooling, encoder.dimension).to(encoder.device)
        self.tokenizer: Tokenizer = _plain_tokenizer(encoder.tokenizer)

    @classmethod
    def new(
        cls, path: Path, mode: SelectorMode, retrievers: Sequence[str], max_tokens: int | None, device: str
    ) -> Selector:
        """Create an untrained selector on an encoder; `max_tokens` None means the encoder's maximum.

        Raises:
            ModelError: the encoder can't be loaded.
            SettingsError: the encoder takes fewer tokens.
        """
        encoder = Encoder.load(path, device)
        return cls(encoder, SelectorCard(mode, tuple(retrievers), max_tokens or encoder.max_tokens or _MOST_TOKENS))

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Selector:
        """Load a trained selector's directory.

        Raises:
            CogenesisError: the directory is incomplete or damaged.
        """
        card = read_selector_card(path)
        selector = cls(Encoder.load(path, device), card)
        try:
            selector.module.head.load_state_dict(safetensors.torch.load_file(path / _HEAD_NAME))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"The selector's head can't be read: {path / _HEAD_NAME} ({reason}). Train the selector again."
            ) from None
        selector.module.eval()
        return selector

    def save(self, directory: Path) -> None:
        """Write a directory that `load` can read.

        Raises:
            OSError: the directory can't be written.
        """
        self.encoder.save(directory)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.head.state_dict().items()}
        safetensors.torch.save_file(head, directory / _HEAD_NAME)
        (directory / SELECTOR_NAME).write_text(self.card.json(), encoding="utf-8")

    def tokens(self, prompt: str, output: str) -> list[int]:
        """Return a candidate's token ids; the output is included only in the mode that selects after generation."""
        answer = output if self.card.mode is SelectorMode.POST else None
        # A tokenizer may give an empty text no tokens; devices use the same token for it.
        return candidate_tokens(self.tokenizer, prompt, answer, self.card.max_tokens) or [0]

    def scores(self, candidates: Sequence[list[int]]) -> torch.Tensor:
        """Score some candidates' token ids in one pass with gradients: (n,) float32."""
        scores: torch.Tensor = self.module(**self.encoder.padded(candidates))
        return scores


def _plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """Return a copy that neither truncates nor pads."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain
