"""Runs a model over calibration text layer by layer and shows, for every matrix, the inputs that it sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import SourceError
from export.model.layers import LayerStack, batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from export.model.weights import WeightSource

WINDOW = 512
MAX_TOKENS = 16_384
_DOCUMENT_BREAK = "\n=====\n"
# In the order of computation; matrices of a group read the same input.
SITES = (
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
        index: which of `SITES`.
        names: the matrices' names (`model.layers.0.self_attn.q_proj.weight`, ...).
        weights: by name, (N, K) float32.
        hessian: (K, K) float32, mean of x xᵀ over the calibration tokens, x as quantized earlier sites produce it.
    """

    layer: int
    index: int
    names: tuple[str, ...]
    weights: Mapping[str, NDArray[np.float32]]
    hessian: NDArray[np.float32]


def calibrate(
    source: WeightSource,
    windows: NDArray[np.int64],
    quantize_site: Callable[[Site], Mapping[str, NDArray[np.float32]]],
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Walk through the model, replacing weights on the way, so that each site sees what the device will feed it.

    Memory: one layer, and the calibration tokens' states in that layer.

    Args:
        source: the model.
        windows: (n, T) token ids.
        quantize_site: gets a site (in the order of computation) and returns the weights to go on with, by name;
            what it leaves out stays.
        progress: called with what is being done, sites done and sites in all.
    """
    import torch

    stack = LayerStack(source)
    hidden = stack.embed(windows)
    total = stack.count * len(SITES)

    def replace(layer: Any, index: int, position: int, x: Any) -> None:
        if progress is not None:
            progress("Calibrating", index * len(SITES) + position, total)
        modules = {f"model.layers.{index}.{name}.weight": layer.get_submodule(name) for name in SITES[position]}
        weights = {name: module.weight.numpy() for name, module in modules.items()}
        for name, new in quantize_site(Site(index, position, tuple(modules), weights, _second_moment(x))).items():
            modules[name].weight.copy_(torch.from_numpy(new))

    with torch.no_grad():
        for index in range(stack.count):
            layer = stack.layer(index)
            normed = layer.input_layernorm(hidden)
            replace(layer, index, 0, normed)
            heads = _attention_inputs(stack, layer, normed)
            replace(layer, index, 1, heads)
            hidden = hidden + layer.self_attn.o_proj(heads)
            normed = layer.post_attention_layernorm(hidden)
            replace(layer, index, 2, normed)
            inner = layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
            replace(layer, index, 3, inner)
            hidden = hidden + layer.mlp.down_proj(inner)
    if progress is not None:
        progress("Calibrating", total, total)


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


def _second_moment(x: Any) -> NDArray[np.float32]:
    """Mean of x xᵀ over all tokens."""
    tokens = x.flatten(0, -2)
    moment: NDArray[np.float32] = (tokens.T @ tokens / len(tokens)).numpy()
    return moment


def read_calibration_text(path: Path | None) -> list[str]:
    """Documents to calibrate on.

    Args:
        path: plain text (one document), JSON lines with a field "text", or None for the text shipped with this
            package, written for it.

    Raises:
        SourceError: the file can't be read, or has no text.
    """
    if path is None:
        text = resources.files("export.quantization").joinpath("calibration_text.txt").read_text(encoding="utf-8")
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
    encode: Callable[[str], list[int]],
    documents: list[str],
    *,
    start: int | None = None,
    window: int = WINDOW,
    max_tokens: int = MAX_TOKENS,
) -> NDArray[np.int64]:
    """Cut documents, one after the other, into windows of equal length: (n, window) token ids.

    Text shorter than one window makes one shorter window.

    Args:
        encode: text to token ids, without special tokens.
        documents: the text.
        start: token that every window starts with; None: whatever the text has there.
        window: tokens a window, `start` included.
        max_tokens: what is more is left out.

    Raises:
        SourceError: there is not a single token.
    """
    tokens = [token for document in documents for token in encode(document)]
    if not tokens:
        raise SourceError("The calibration text has no tokens. Give a few pages of typical text.")
    marker = [] if start is None else [start]
    width = min(window - len(marker), len(tokens))
    count = max(1, min(len(tokens), max_tokens) // width)
    return np.array([marker + tokens[index * width : (index + 1) * width] for index in range(count)], np.int64)
