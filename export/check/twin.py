"""Shrinks a model's configuration to a small random twin that computes the same way, to check what size forbids.

A real model is too slow past every boundary of its positions, and what its rounded weights hide a float32 twin shows.
The twin keeps what decides how a decoder computes (head size, rotary positions, windows, norms, activations). It has
few heads, few layers, a small vocabulary, and its boundaries are near.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file

from edge_runtime.errors import WriteError
from export.check.reference import built_config, quiet
from export.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from export.model.architecture import Architecture

VOCABULARY = 256
_HEADS = 4
_INTERMEDIATE = 96
_LAYERS = 8
_SPREAD = 0.15  # of the weights: so large that every part of the model matters
# Boundaries of positions, and how near the twin's are at most.
NEAR = {"sliding_window": 160, "original_max_position_embeddings": 224}
# A file without a configuration has frequencies that were computed for its own length.
NEAR_WITHOUT_CONFIGURATION = {"sliding_window": NEAR["sliding_window"]}


def twin_config(config: Mapping[str, Any], near: Mapping[str, int] = NEAR) -> dict[str, Any]:
    """Shrink a Hugging Face configuration; every key that does not say a size or a boundary is kept as it is.

    Args:
        config: as its JSON file has it.
        near: how near a boundary of positions is at most, by its key.
    """
    full = built_config(config)
    layers = int(full.num_hidden_layers)
    kinds = layer_kinds(full, layers)
    kept = min(max(2, *(kinds.index(kind) + 1 for kind in set(kinds))), layers, _LAYERS)
    heads, kv_heads = int(full.num_attention_heads), getattr(full, "num_key_value_heads", None)
    width = int(getattr(full, "head_dim", None) or full.hidden_size // heads)
    sizes = {
        "num_hidden_layers": kept,
        "num_attention_heads": _HEADS,
        "hidden_size": _HEADS * width,
        "intermediate_size": _INTERMEDIATE,
        "vocab_size": VOCABULARY,
    }
    if kv_heads is not None:
        sizes["num_key_value_heads"] = _HEADS if int(kv_heads) == heads else 2 if int(kv_heads) > 1 else 1
    # Some families have their own names for sizes.
    names = getattr(full, "attribute_map", {})
    small = dict(config) | {names.get(name, name): value for name, value in sizes.items() if hasattr(full, name)}
    for name, value in config.items():
        if isinstance(value, list) and len(value) == layers:
            small[name] = value[:kept]
        elif name.endswith("_token_id") and value is not None:
            small[name] = 0
    small["pad_token_id"] = 0  # some families have a default beyond the small vocabulary
    return _with_near_boundaries(small, near)


def layer_kinds(full: Any, layers: int) -> list[tuple[object, ...]]:
    """Return what a configuration says of each layer alone, so that equal layers have equal entries."""
    lists = [
        value
        for name, value in sorted(vars(full).items())
        if isinstance(value, list | tuple) and len(value) == layers and not name.startswith("_")
    ]
    return [tuple(str(values[layer]) for values in lists) for layer in range(layers)]


def boundaries_of(config: Mapping[str, Any]) -> list[int]:
    """List the numbers of positions at which the model begins to compute differently."""
    found = {config.get(name) for name in NEAR}
    for part in config.values():
        if isinstance(part, dict):
            found |= set(boundaries_of(part))
    return sorted(value for value in found if isinstance(value, int) and value > 0)


def twin_architecture(architecture: Architecture, config: Mapping[str, Any]) -> Architecture:
    """Shrink an architecture as `twin_config` shrank the configuration, for sources that have no configuration."""
    kept = int(config["num_hidden_layers"])
    changes: dict[str, Any] = {
        "layers": kept,
        "hidden": int(config["hidden_size"]),
        "heads": int(config["num_attention_heads"]),
        "kv_heads": int(config.get("num_key_value_heads") or config["num_attention_heads"]),
        "intermediate": int(config["intermediate_size"]),
        "vocab": int(config["vocab_size"]),
    }
    for field in fields(architecture):
        value = getattr(architecture, field.name)
        if isinstance(value, tuple) and len(value) == architecture.layers:
            changes[field.name] = value[:kept]
    nearest = NEAR["sliding_window"]
    changes["windows"] = tuple(None if width is None else min(width, nearest) for width in changes["windows"])
    if math.isclose(architecture.embedding_scale, architecture.hidden**0.5):
        changes["embedding_scale"] = changes["hidden"] ** 0.5
    return replace(architecture, **changes)


def write_twin(config: Mapping[str, Any], directory: Path) -> None:
    """Write a model directory with the given configuration, word for word, and random weights.

    Raises:
        UnsupportedModelError: transformers can't build the model.
        WriteError: the disk is full.
    """
    full = built_config(config)
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_config(full, dtype=torch.float32)
    except Exception as error:  # transformers does not say what it raises
        raise UnsupportedModelError(
            f"transformers can't build a small model of this kind ({' '.join(str(error).split())[:200]}). "
            "Set `check` to False to export this one unchecked."
        ) from None
    _randomize(model)
    shared = {name for name in getattr(model, "_tied_weights_keys", None) or () if model.config.tie_word_embeddings}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in shared}
    try:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors' I/O errors carry no errno
        raise WriteError(
            f"The disk is full: the check's small model can't be written to {directory} ({error}). Free some space."
        ) from None


def _with_near_boundaries(config: Mapping[str, Any], near: Mapping[str, int]) -> dict[str, Any]:
    changed = dict(config)
    for name, value in config.items():
        if isinstance(value, dict):
            changed[name] = _with_near_boundaries(value, near)
        elif name in near and isinstance(value, int):
            changed[name] = min(value, near[name])
    return changed


def _randomize(model: torch.nn.Module) -> None:
    """Give a model random weights, the same each time: norms near what they were, everything else normal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and parameter.ndim == 1:
                parameter.add_(values * 0.2)
            else:
                parameter.copy_(values * _SPREAD)
