"""Runs a model directory in Hugging Face format on full texts, in torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from personalization.collab.logprobs.model_spec import ModelSpec
from personalization.errors import SettingsError
from personalization.models.base_model import Base


class TorchNetwork:
    """See `personalization.collab.logprobs.scorer.Network`."""

    def __init__(self, spec: ModelSpec) -> None:
        """Load a model directory in float32.

        Raises:
            ModelError: the directory is incomplete or damaged.
            SettingsError: the model is not a decoder with a maximum context length, or there is no such device.
        """
        base = Base(spec.source, spec.threads, spec.device)
        if base.seq2seq or base.context_length is None:
            raise SettingsError(f"Fusion needs causal language models with a longest context: {spec.source}.")
        self._base = base
        self.vocab_size = int(base.model.config.vocab_size)
        self.context_length = base.context_length
        self._selects_rows = "logits_to_keep" in inspect.signature(base.model.forward).parameters
        self.tokenizer, self.template = base.writer.tokenizer, base.writer.template

    def logits(self, token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        """See `Network.logits`."""
        with torch.inference_mode():
            ids = torch.tensor([list(token_ids)], device=self._base.device)
            only = {"logits_to_keep": rows} if self._selects_rows else {}
            logits = self._base.model(input_ids=ids, use_cache=False, **only).logits[0, -rows:]
            result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result
