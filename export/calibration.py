"""Runs a model over calibration text layer by layer and shows, for every matrix, the inputs that it sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import SourceError
from export.layers import LayerStack, batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from export.weights import WeightSource

WINDOW = 512
MAX_TOKENS = 16_384
_DOCUMENT_BREAK = "\n=====\n"
# In the order of computation; matrices of a group read the same input.
_SITES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@dataclass(frozen=True, eq=False)
class Site:
    """Matrices that read the same input, in one layer.

    Attributes:
        layer: which layer.
        names: the matrices' names (`model.layers.0.self_attn.q_proj.weight`, ...).
        weights: by name, (N, K) float32.
        hessian: (K, K) float32, mean of x xᵀ over the calibration tokens, x as quantized earlier layers produce it.
        cross: (K, K) float32, mean of x0 xᵀ, x0 as the original model produces it.
    """

    layer: int
    names: tuple[str, ...]
    weights: Mapping[str, NDArray[np.float32]]
    hessian: NDArray[np.float32]
    cross: NDArray[np.float32]


def calibrate(
    source: WeightSource,
    windows: NDArray[np.int64],
    quantize_site: Callable[[Site], Mapping[str, NDArray[np.float32]]],
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Walk through the model, replacing weights on the way, so that each site sees what the device will feed it.

    Two streams of hidden states run side by side: the original model's, and that of the model whose earlier sites are
    already replaced. Memory: one layer, and for both streams the calibration tokens' states in that layer.

    Args:
        source: the model.
        windows: (n, T) token ids.
        quantize_site: gets a site (in the order of computation) and returns the weights to go on with, by name.
        progress: called with what is being done, sites done and sites in all.
    """
    import torch

    stack = LayerStack(source)
    original = stack.embed(windows)
    changed = original.clone()
    with torch.inference_mode():
        for index in range(stack.count):
            before, after = stack.layer(index), stack.layer(index)

            def replace(position: int, x0: Any, x: Any, index: int = index, layer: Any = after) -> None:
                if progress is not None:
                    progress("Calibrating", index * len(_SITES) + position, stack.count * len(_SITES))
                names = _SITES[position]
                modules = {f"model.layers.{index}.{name}.weight": layer.get_submodule(name) for name in names}
                hessian, cross = _moments(x0, x)
                weights = {name: module.weight.numpy() for name, module in modules.items()}
                for name, new in quantize_site(Site(index, tuple(modules), weights, hessian, cross)).items():
                    modules[name].weight.copy_(torch.from_numpy(new))

            normed0, normed = before.input_layernorm(original), after.input_layernorm(changed)
            replace(0, normed0, normed)
            heads0 = _attention_inputs(stack, before, normed0)
            heads = _attention_inputs(stack, after, normed)
            replace(1, heads0, heads)
            original = original + before.self_attn.o_proj(heads0)
            changed = changed + after.self_attn.o_proj(heads)
            normed0, normed = before.post_attention_layernorm(original), after.post_attention_layernorm(changed)
            replace(2, normed0, normed)
            inner0, inner = _inner(before, normed0), _inner(after, normed)
            replace(3, inner0, inner)
            original = original + before.mlp.down_proj(inner0)
            changed = changed + after.mlp.down_proj(inner)
    if progress is not None:
        progress("Calibrating", stack.count * len(_SITES), stack.count * len(_SITES))


def _attention_inputs(stack: LayerStack, layer: Any, normed: Any) -> Any:
    """What the output projection reads: (n, T, heads * head_dim)."""
    import torch

    seen: list[Any] = []
    hook = layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        for part in batches(normed):
            stack.attention(layer, normed[part])
    finally:
        hook.remove()
    return torch.cat(seen)


def _inner(layer: Any, normed: Any) -> Any:
    """What the down projection reads: (n, T, intermediate)."""
    return layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)


def _moments(original: Any, changed: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means of x xᵀ and x0 xᵀ over all tokens."""
    x0, x = original.flatten(0, -2), changed.flatten(0, -2)
    return (x.T @ x / len(x)).numpy(), (x0.T @ x / len(x)).numpy()


def read_calibration_text(path: Path | None) -> list[str]:
    """Documents to calibrate on.

    Args:
        path: plain text (one document), JSON lines with a field "text", or None for the text shipped with this
            package, written for it.

    Raises:
        SourceError: the file can't be read, or has no text.
    """
    if path is None:
        text = resources.files("export").joinpath("calibration_text.txt").read_text(encoding="utf-8")
        return [part.strip() for part in text.split(_DOCUMENT_BREAK) if part.strip()]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"The calibration text is not UTF-8: {path}. Convert it, or choose another file.") from None
    except OSError as error:
        raise SourceError(f"The calibration text can't be read: {path} ({error.strerror}).") from None
    documents = _json_lines(text, path) if path.suffix in (".jsonl", ".ndjson") else [text.strip()]
    if not any(documents):
        raise SourceError(f"The calibration text is empty: {path}. Give a few pages of typical text.")
    return documents


def _json_lines(text: str, path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise SourceError(
                f'The calibration text is not valid: {path}, line {number} is not a JSON object with a string "text".'
            )
        documents.append(record["text"].strip())
    return documents


def calibration_windows(
    encode: Callable[[str], list[int]], documents: list[str], *, window: int = WINDOW, max_tokens: int = MAX_TOKENS
) -> NDArray[np.int64]:
    """Cut documents, one after the other, into windows of equal length: (n, window) token ids.

    Text shorter than one window makes one shorter window.

    Raises:
        SourceError: there is not a single token.
    """
    tokens = [token for document in documents for token in encode(document)]
    if not tokens:
        raise SourceError("The calibration text has no tokens. Give a few pages of typical text.")
    window = min(window, len(tokens))
    count = max(1, min(len(tokens), max_tokens) // window)
    return np.array(tokens[: count * window], np.int64).reshape(count, window)
