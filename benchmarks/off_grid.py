"""The same function with other weights: channels shuffled, so that no block of weights lies on the source's own grid.

The only real model that installs from a package registry is a GGUF file. A float32 directory made from it has weights
that lie exactly on a 4-bit grid, and every quantizer with affine blocks finds that grid again: such a directory says
nothing about models that were never quantized. Shuffling hidden, intermediate and value channels changes which
weights share a block, and nothing else.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Tensors = dict[str, "NDArray[np.float32]"]


def write_shuffled(source: Path, target: Path, seed: int = 0) -> None:
    """Copy a Llama model directory with its channels shuffled.

    Args:
        source: a directory with one `model.safetensors`.
        target: where the copy goes; must not exist.
        seed: of the shuffle.
    """
    from export.model.hf_source import HFSource

    architecture = HFSource(source).architecture
    shuffled = shuffle_channels(
        load_file(source / "model.safetensors"),
        layers=architecture.layers,
        heads=architecture.heads,
        kv_heads=architecture.kv_heads,
        seed=seed,
    )
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(shuffled, target / "model.safetensors", metadata={"format": "pt"})


def shuffle_channels(tensors: Tensors, *, layers: int, heads: int, kv_heads: int, seed: int) -> Tensors:
    """Permute hidden channels everywhere, intermediate channels and each head's value channels in every layer."""
    random = np.random.default_rng(seed)
    hidden = random.permutation(tensors["model.embed_tokens.weight"].shape[1])
    result: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 1 or name.endswith(("o_proj.weight", "down_proj.weight")):
            result[name] = tensor[hidden]
        else:
            result[name] = tensor[:, hidden]
    for index in range(layers):
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        inner = random.permutation(result[f"{mlp}gate_proj.weight"].shape[0])
        for name in ("gate_proj", "up_proj"):
            result[f"{mlp}{name}.weight"] = result[f"{mlp}{name}.weight"][inner]
        result[f"{mlp}down_proj.weight"] = result[f"{mlp}down_proj.weight"][:, inner]
        values, output = result[f"{attention}v_proj.weight"], result[f"{attention}o_proj.weight"]
        width = values.shape[0] // kv_heads
        orders = [random.permutation(width) for _ in range(kv_heads)]
        rows = np.concatenate([head * width + order for head, order in enumerate(orders)])
        columns = np.concatenate([head * width + orders[head * kv_heads // heads] for head in range(heads)])
        result[f"{attention}v_proj.weight"], result[f"{attention}o_proj.weight"] = values[rows], output[:, columns]
    return {name: np.ascontiguousarray(tensor) for name, tensor in result.items()}
