"""Text encoders in Hugging Face format (Contriever, MiniLM, any BERT) that embed a text as its mean last hidden state.

As in Contriever (Izacard et al., 2022), vectors are not normalised, and their dot product is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForTextEncoding

from export.encoders.sentence_files import read_pooling
from export.model.hf_source import read_config
from export.model.hf_tokenizer import HFTokenizerFiles
from export.model.transformers_config import transformers_config
from personalization.errors import ModelError, SettingsError
from personalization.models.load_errors import model_errors


class MeanPooling(torch.nn.Module):
    """A model whose output is the mean of its last hidden states, without padding."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed texts.

        Args:
            input_ids: (n, length) int64.
            attention_mask: (n, length) int64, 0 for padding; each text has at least one token.

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
    @model_errors()
    def load(cls, path: Path | str, device: str = "cpu") -> Encoder:
        """Load a model directory in float32, without dropout.

        Args:
            path: the directory, with weights as safetensors or as PyTorch's `.bin`. A head or pooler on top of the
                encoder is dropped; of an encoder-decoder model only the encoder is loaded.
            device: "cpu", "cuda" or "cuda:1".

        Raises:
            ModelError: the directory is incomplete or damaged.
            SettingsError: there is no such device.
        """
        path = Path(path)
        if read_pooling(path) != "mean":
            raise ModelError(f"The encoder's vector is its first token's, and only the mean is supported here: {path}.")
        encoder_decoder = read_config(path).get("is_encoder_decoder")
        described, files = transformers_config(path), HFTokenizerFiles(path)
        kind = AutoModelForTextEncoding if encoder_decoder else AutoModel
        try:
            model, found = kind.from_pretrained(
                path, config=described, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # transformers' parts raise many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"The encoder can't be loaded: {path} ({reason}). Download it again.") from None
        missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
        if missing:
            raise ModelError(f"The encoder lacks weights: {path} ({missing[0]}). Download or train it again.")
        tokenizer = files.fast_tokenizer()
        if tokenizer.pad_token_id is None:
            raise ModelError(f"The encoder's tokenizer has no padding token: {path}. Set its 'pad_token'.")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # unused by the mean, and parameters without a gradient block distributed training
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(f"The device can't be used: {device} ({reason}). Use cpu.") from None
        return cls(MeanPooling(model.eval()), tokenizer, _most_tokens(model, tokenizer))

    @property
    def dimension(self) -> int:
        """Dimension of a vector."""
        return int(self.pooling.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.pooling.parameters()).device

    def embed(self, texts: Sequence[str], batch: int = 32) -> NDArray[np.float32]:
        """Embed any number of texts without gradients, in batches of similar length.

        Args:
            texts: the texts; longer ones are truncated to the model's maximum.
            batch: maximum number of texts per batch.

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
        """Token ids of each text with special tokens, truncated to the model's maximum."""
        if not texts:
            return []
        limit = {"truncation": self.max_tokens is not None, "max_length": self.max_tokens}
        ids: list[list[int]] = self.tokenizer(list(texts), padding=False, **limit)["input_ids"]
        # Without special tokens, an empty text would have no token at all.
        return [row or [self.tokenizer.pad_token_id] for row in ids]

    def padded(self, tokens: Sequence[Sequence[int]]) -> Mapping[str, torch.Tensor]:
        """Return the arguments of `MeanPooling.forward` for some texts' token ids, on the encoder's device."""
        longest = max(len(row) for row in tokens)
        ids = torch.full((len(tokens), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(tokens):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts in one pass with gradients: (n, d) float32 on the encoder's device."""
        embedded: torch.Tensor = self.pooling(**self.padded(self.tokens(texts)))
        return embedded

    def save(self, directory: Path) -> None:
        """Write the encoder as a model directory that `load` reads.

        Raises:
            OSError: the directory can't be written.
        """
        # Otherwise the truncation and padding of the last use would be saved.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.pooling.backbone.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def _most_tokens(model: Any, tokenizer: Any) -> int | None:
    """Maximum number of tokens by positions and tokenizer; None if positions are relative and there is no limit."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):
        # RoBERTa and similar models count positions from after the padding's own.
        room = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    else:
        room = getattr(model.config, "max_position_embeddings", None)
    said = tokenizer.model_max_length
    limits = [limit for limit in (room, said) if isinstance(limit, int) and 0 < limit < 1 << 20]
    return min(limits, default=None)
