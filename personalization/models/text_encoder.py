"""Text encoders in Hugging Face format (Contriever, MiniLM, any BERT): the mean of the last hidden states is a vector.

As Contriever's (Izacard et al., 2022): no normalisation, and the dot product of two vectors is their score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

from export.errors import SourceError
from export.model.hf_source import read_config
from personalization.errors import SettingsError


class MeanPooling(torch.nn.Module):
    """A model whose output is the mean of its last hidden states, padding left out."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed texts.

        Args:
            input_ids: (n, length) int64.
            attention_mask: (n, length) int64, 0 where there is padding; each text has at least one token.

        Returns:
            (n, d) float32.
        """
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


class Encoder:
    """A text encoder and its tokenizer."""

    def __init__(self, pooling: MeanPooling, tokenizer: Any, max_tokens: int | None) -> None:
        self.pooling = pooling
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu") -> Encoder:
        """Load a model directory in float32, without dropout.

        Args:
            path: the directory, with weights as safetensors or as PyTorch's `.bin`. A head or pooler that stands on
                the encoder is left out; of an encoder-decoder model only the encoder is taken.
            device: "cpu", "cuda" or "cuda:1".

        Raises:
            ExportError: the directory is incomplete or damaged.
            SettingsError: there is no such device.
        """
        path = Path(path)
        encoder_decoder = read_config(path).get("is_encoder_decoder")
        kind = AutoModelForTextEncoding if encoder_decoder else AutoModel
        try:
            model, found = kind.from_pretrained(
                path, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers raises whatever its many parts do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceError(f"The encoder can't be loaded: {path} ({reason}).") from None
        missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
        if missing:
            raise SourceError(f"The encoder lacks weights: {path} ({missing[0]}). Download or train it again.")
        if not tokenizer.is_fast:
            raise SourceError(f"The tokenizer has no tokenizer.json and can't be converted to one: {path}.")
        if tokenizer.pad_token_id is None:
            raise SourceError(f"The encoder's tokenizer has no padding token: {path}. Set its 'pad_token'.")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # not of the mean, and parameters without a gradient stop distributed training
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(f"The device can't be used: {device} ({reason}). Use cpu.") from None
        return cls(MeanPooling(model.eval()), tokenizer, _most_tokens(model, tokenizer))

    @property
    def dimension(self) -> int:
        """Size of a vector."""
        return int(self.pooling.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.pooling.parameters()).device

    def embed(self, texts: Sequence[str], batch: int = 32) -> NDArray[np.float32]:
        """Embed any number of texts, those of about the same length together, without gradients.

        Args:
            texts: longer ones are cut to what the model takes.
            batch: most texts in a pass through the model.

        Returns:
            (n, d) float32, in the order of the texts.
        """
        tokens = self.tokens(texts)
        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        order = sorted(range(len(tokens)), key=lambda index: (len(tokens[index]), index))
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                part = order[start : start + batch]
                vectors[part] = self.pooling(**self.padded([tokens[index] for index in part])).float().cpu().numpy()
        return vectors

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special ones included, cut to what the model takes."""
        if not texts:
            return []
        limit = {"truncation": self.max_tokens is not None, "max_length": self.max_tokens}
        ids: list[list[int]] = self.tokenizer(list(texts), padding=False, **limit)["input_ids"]
        # A tokenizer that adds no special tokens gives an empty text none.
        return [row or [self.tokenizer.pad_token_id] for row in ids]

    def padded(self, tokens: Sequence[Sequence[int]]) -> Mapping[str, torch.Tensor]:
        """The arguments of `MeanPooling.forward` for some texts' token ids, on the encoder's device."""
        longest = max(len(row) for row in tokens)
        ids = torch.full((len(tokens), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(tokens):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts in one pass that gradients flow through: (n, d) float32 on the encoder's device."""
        embedded: torch.Tensor = self.pooling(**self.padded(self.tokens(texts)))
        return embedded

    def save(self, directory: Path) -> None:
        """Write the encoder as a model directory that `load` reads.

        Raises:
            OSError: it can't be written.
        """
        # Else it would be saved as it was last used.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.pooling.backbone.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def _most_tokens(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model has positions for; None where positions are relative and nothing else is said."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):
        # RoBERTa and its like count positions from behind the padding's own.
        room = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    else:
        room = getattr(model.config, "max_position_embeddings", None)
    said = tokenizer.model_max_length
    limits = [limit for limit in (room, said) if isinstance(limit, int) and 0 < limit < 1 << 20]
    return min(limits, default=None)
