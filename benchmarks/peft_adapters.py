"""Trains and runs LoRA adapters with PEFT, as a reference for our own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES: dict[str, dict[str, Any]] = {
    "rank 8 on q and v": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "rank 16 on all": {"r": 16, "target_modules": list(_LINEAR)},
    "ranks of their own": {
        "r": 4,
        "target_modules": list(_LINEAR),
        "rank_pattern": {"q_proj": 12, "down_proj": 3, "layers.7.mlp.up_proj": 20},
        "alpha_pattern": {"v_proj": 12},
    },
}
"""PEFT configurations of the compared adapters."""

_STEPS, _STEP_TOKENS, _RATE = 3, 64, 1e-3


class PeftModel:
    """A float32 torch model that uses one PEFT adapter at a time."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def train(self, out: Path, shape: str, token_ids: Sequence[int]) -> Path:
        """Train an adapter of one of `SHAPES` for a few steps on a text, and save it.

        Args:
            out: directory to write.
            shape: name of the shape.
            token_ids: tokens of the text.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(lora_alpha=16, task_type="CAUSAL_LM", **SHAPES[shape])
        model = get_peft_model(self._model, config)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=_RATE)
        for step in range(_STEPS):
            piece = torch.tensor([token_ids[step * _STEP_TOKENS : (step + 1) * _STEP_TOKENS]])
            model(input_ids=piece, labels=piece).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(out)
        self._model = model.unload().requires_grad_(False)
        return out

    def rows(self, token_ids: Sequence[int], adapter: Path | None = None) -> NDArray[np.float32]:
        """Compute all rows of logits, (len(token_ids), vocabulary), with a saved adapter or without one."""
        import peft
        import torch

        model = self._model if adapter is None else peft.PeftModel.from_pretrained(self._model, adapter).eval()
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.tensor([list(token_ids)])).logits[0].numpy()
        if adapter is not None:
            self._model = model.unload()
        return logits
