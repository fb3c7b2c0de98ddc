"""Quantization schemes: which matrix gets how many bits, and a whole model quantized that way, matrix by matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from export.calibration import calibrate, calibration_windows, read_calibration_text
from export.errors import UnsupportedQuantizationError
from export.gptq import gptq
from export.quantize import BLOCK_SIZE, quantize
from export.sensitivity import most_sensitive, site_sensitivities
from export.weights import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from export.calibration import Site
    from export.quantize import QuantizedMatrix
    from export.weights import WeightSource

    Progress: TypeAlias = Callable[[str, int, int], None]

Scheme: TypeAlias = Literal["int8", "mixed", "int4"]

DESCRIPTIONS: Mapping[str, str] = {
    "int8": "8 bits everywhere, symmetric blocks of 32",
    "mixed": "GPTQ; 8 bits for the half of the weights that the model is most sensitive in, 4 bits for the rest, "
    "8-bit embedding and head",
    "int4": "GPTQ; 4 bits, but 8 for the twentieth of the weights that the model is most sensitive in, "
    "8-bit embedding and head",
}
EIGHT_BIT_SHARE: Mapping[str, float] = {"mixed": 0.5, "int4": 0.05}
"""Of the weights of the layers; sensitivity is spread so unevenly that a twentieth of them is half of the loss."""

_PROBES, _PROBE_TOKENS = 8, 128  # windows of text on which sensitivity is measured
_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def quantize_model(
    source: WeightSource,
    scheme: Scheme,
    calibration_text: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, QuantizedMatrix]:
    """Quantize every matrix of a Llama-family model.

    Matrices that the graph packs side by side (q, k, v; gate, up) always share bits and kind of grid, so their rows
    can simply be concatenated. 8-bit matrices are symmetric without zeros; 4-bit ones have zeros and a residual.

    Args:
        source: the model.
        scheme: see `DESCRIPTIONS`.
        calibration_text: plain text or JSON lines with "text"; None for the text shipped with this package.
            int8 needs none.
        progress: called with what is being done, steps done and steps in all.

    Returns:
        By the matrices' names (`model.layers.0.self_attn.q_proj.weight`, `model.embed_tokens.weight`, and
        `lm_head.weight` where the head isn't tied). One byte a weight in memory.

    Raises:
        SourceError: a tensor or the calibration text is missing or damaged.
        UnsupportedQuantizationError: rows can't be cut into blocks.
    """
    architecture = source.architecture
    for what, width in (
        ("hidden size", architecture.hidden),
        ("width of the attention heads", architecture.query_width),
        ("intermediate size", architecture.intermediate),
    ):
        if width % BLOCK_SIZE:
            raise UnsupportedQuantizationError(
                f"The model's {what} is {width}, not a multiple of {BLOCK_SIZE}. Use --quantize fp32."
            )
    tables = (EMBEDDING,) if architecture.tied_head else (EMBEDDING, HEAD)
    matrices = {name: quantize(source.read(name), 8) for name in tables}
    if scheme == "int8":
        matrices |= _round_all(source, progress)
    else:
        matrices |= _gptq_all(source, scheme, calibration_text, progress)
    return matrices


def _round_all(source: WeightSource, progress: Progress | None) -> dict[str, QuantizedMatrix]:
    matrices = {}
    for index in range(source.architecture.layers):
        if progress is not None:
            progress("Quantizing", index, source.architecture.layers)
        for projection in _PROJECTIONS:
            name = f"model.layers.{index}.{projection}.weight"
            matrices[name] = quantize(source.read(name), 8)
    if progress is not None:
        progress("Quantizing", source.architecture.layers, source.architecture.layers)
    return matrices


def _gptq_all(
    source: WeightSource, scheme: Scheme, calibration_text: Path | None, progress: Progress | None
) -> dict[str, QuantizedMatrix]:
    windows = _windows(source, calibration_text)
    step = max(1, len(windows) // _PROBES)
    costs = site_sensitivities(source, windows[::step][:_PROBES, :_PROBE_TOKENS], progress)
    wide = most_sensitive(costs, _site_sizes(source), EIGHT_BIT_SHARE[scheme])
    matrices: dict[str, QuantizedMatrix] = {}

    def quantize_site(site: Site) -> dict[str, NDArray[np.float32]]:
        stacked = np.concatenate([site.weights[name] for name in site.names])
        eight = (site.layer, site.index) in wide
        whole = quantize(stacked, 8) if eight else gptq(stacked, 4, site.hessian)
        ends = np.cumsum([len(site.weights[name]) for name in site.names])
        matrices.update(
            {name: whole.rows(end - len(site.weights[name]), end) for name, end in zip(site.names, ends, strict=True)}
        )
        return {name: matrices[name].dequantize() for name in site.names}

    calibrate(source, windows, quantize_site, progress)
    return matrices


def _site_sizes(source: WeightSource) -> dict[tuple[int, int], int]:
    a = source.architecture
    sizes = (
        a.hidden * (a.query_width + 2 * a.kv_width),
        a.hidden * a.query_width,
        2 * a.hidden * a.intermediate,
        a.hidden * a.intermediate,
    )
    return {(layer, index): size for layer in range(a.layers) for index, size in enumerate(sizes)}


def _windows(source: WeightSource, calibration_text: Path | None) -> NDArray[np.int64]:
    from tokenizers import Tokenizer

    assets = source.tokenizer()
    tokenizer = Tokenizer.from_str(assets.json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Every text that the device will see starts with this token, which large activations gather at.
    start = tokenizer.token_to_id(assets.bos_token) if assets.bos_token else None
    return calibration_windows(
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        read_calibration_text(calibration_text),
        start=start,
    )
