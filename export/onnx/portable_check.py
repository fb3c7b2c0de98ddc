"""Checks what a portable export starts from, and compares its graph with transformers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import ConformanceError, UnsupportedModelError
from export.model.architecture import LLAMA_FAMILY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from export.model.hf_source import HFDirectory

_TOLERANCE = 1e-3  # of the logits' largest value
_ROWS = 48
_LONGEST = 1100  # a comparison beyond this takes too long
_SEED = 14


def check_exportable(model: HFDirectory) -> None:
    """Refuse an architecture by name, before its weights are read.

    Raises:
        UnsupportedModelError: transformers does not know it as a text generator with a cache that can be truncated.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = model.family
    covered = f"Our graph covers {', '.join(LLAMA_FAMILY)}"
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family)
    if name is None or model.config.get("is_encoder_decoder"):
        raise UnsupportedModelError(
            f"Models of type '{family}' can't be exported: {model.path}. {covered}; the installed transformers does "
            "not know this type as a text generator either."
        )
    import transformers

    if getattr(getattr(transformers, name), "_is_stateful", False):
        raise UnsupportedModelError(
            f"Models of type '{family}' can't be exported: {model.path}. {covered}; the state of this type can't be "
            "rewound."
        )
    if model.config.get("quantization_config"):
        raise UnsupportedModelError(f"The weights are already quantized: {model.path}. Use the original model.")


def compare_with_torch(network: Any, graph: Path, config: Mapping[str, Any], context_length: int) -> None:
    """Compare a portable graph with the network: a long part, single tokens, a rewind, and past a sliding window.

    Raises:
        ConformanceError: the logits differ.
    """
    import onnxruntime
    import torch

    windows = [config.get(name) for name in ("sliding_window", "window_size")]
    bounds = [window for window in windows if isinstance(window, int) and 0 < window < _LONGEST - _ROWS]
    count = min(max([0, *bounds]) + _ROWS, context_length)
    ids = np.random.default_rng(_SEED).integers(0, int(config["vocab_size"]), count)
    with torch.inference_mode():
        expected = network(input_ids=torch.from_numpy(ids)[None]).logits[0].float().numpy()
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    past = {
        name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for name, value in inputs.items()
        if name.startswith("past_key_values.")
    }
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    done, half, largest = 0, count // 2, 0.0
    for length in (half, 1, 1, -2, count - half):
        if length < 0:
            done += length
            past = {name: array[:, :, :done] for name, array in past.items()}
            continue
        end = min(done + length, count)
        feeds: dict[str, Any] = {
            "input_ids": ids[None, done:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(done, end)[None],
            **past,
        }
        logits, *caches = session.run(outputs, {name: feeds[name] for name in inputs})
        past = dict(zip(past, caches, strict=True))
        largest = max(largest, float(np.abs(logits[0] - expected[done:end]).max(initial=0.0)))
        done = end
    allowed = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not largest <= allowed:
        raise ConformanceError(
            f"The exported graph differs from transformers by {largest:.2g} in its logits, allowed are {allowed:.2g}: "
            f"this model of type '{config.get('model_type')}' can't be exported right."
        )
