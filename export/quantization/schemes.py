"""Defines how many bits each scheme gives each matrix, and quantizes a model that way, matrix by matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from export.errors import UnsupportedQuantizationError
from export.model.weights import EMBEDDING, HEAD
from export.quantization.calibration import calibrate, calibration_windows, read_calibration_text
from export.quantization.gptq import gptq
from export.quantization.quantize import check_widths, quantize
from export.quantization.sensitivity import most_sensitive, site_sensitivities

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from export.model.quantized_matrix import QuantizedMatrix
    from export.model.weights import WeightSource
    from export.quantization.calibration import Site

    Progress: TypeAlias = Callable[[str, int, int], None]

Scheme: TypeAlias = Literal["mixed", "int4"]

DESCRIPTIONS: Mapping[str, str] = {
    "mixed": "GPTQ; 8 bits for the half of the weights that the model is most sensitive in, 4 bits for the rest, "
    "8-bit embedding and head",
    "int4": "GPTQ; 4 bits, but 8 for the twentieth of the weights that the model is most sensitive in, "
    "8-bit embedding and head",
}
EIGHT_BIT_SHARE: Mapping[str, float] = {"mixed": 0.5, "int4": 0.05}
"""Share of the layers' weights that get 8 bits; half of the loss comes from a twentieth of the weights."""

_PROBES, _PROBE_TOKENS = 8, 128  # windows of text to measure sensitivity


def quantize_model(
    source: WeightSource,
    scheme: Scheme,
    calibration_text: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, QuantizedMatrix]:
    """Quantize every matrix of a Llama-family model.

    Matrices that the graph packs together (q, k, v; gate, up) always have the same bits and kind of grid, so their rows
    can be concatenated. 8-bit matrices are symmetric without zero points; 4-bit ones have zero points and a residual.

    Args:
        source: the model.
        scheme: see `DESCRIPTIONS`.
        calibration_text: plain text or JSON lines with "text"; None uses the text shipped with this package.
        progress: see `export.progress`.

    Returns:
        The matrices by name (`model.layers.0.self_attn.q_proj.weight`, `model.embed_tokens.weight`, and
        `lm_head.weight` if the head isn't tied). They take one byte per weight in memory.

    Raises:
        SourceError: a tensor or the calibration text is missing or damaged.
        UnsupportedQuantizationError: rows can't be split into blocks.
    """
    architecture = source.architecture
    check_widths(architecture)
    if not architecture.plain:
        raise UnsupportedQuantizationError(
            f"'{scheme}' needs calibration, which there is not for models of type '{architecture.family}' with these "
            "layers. Use `quantize` int8 or fp32."
        )
    tables = (EMBEDDING,) if architecture.tied_head else (EMBEDDING, HEAD)
    matrices = {name: quantize(source.read(name), 8) for name in tables}
    return matrices | _calibrated(source, scheme, calibration_text, progress)


def _calibrated(
    source: WeightSource, scheme: Scheme, calibration_text: Path | None, progress: Progress | None
) -> dict[str, QuantizedMatrix]:
    windows = calibration_tokens(source, calibration_text)
    sizes = _site_sizes(source)
    costs = site_sensitivities(source, _spread(windows, _PROBES)[:, :_PROBE_TOKENS], progress)
    wide = most_sensitive(costs, sizes, EIGHT_BIT_SHARE[scheme])
    matrices: dict[str, QuantizedMatrix] = {}

    def quantize_site(site: Site) -> dict[str, NDArray[np.float32]]:
        stacked = np.concatenate([site.weights[name] for name in site.names])
        eight = (site.layer, site.index) in wide
        whole = gptq(stacked, 8 if eight else 4, site.hessian, "symmetric" if eight else "affine")
        stop = 0
        for name in site.names:
            start, stop = stop, stop + len(site.weights[name])
            matrices[name] = whole.rows(start, stop)
        return {name: matrices[name].dequantize() for name in site.names}

    calibrate(source, windows, quantize_site, progress)
    return matrices


def _spread(windows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Pick at most `count` windows from all over the text."""
    return windows[:: max(1, len(windows) // count)][:count]


def _site_sizes(source: WeightSource) -> dict[tuple[int, int], int]:
    a = source.architecture
    sizes = (
        a.hidden * (a.query_width + 2 * a.kv_width),
        a.hidden * a.query_width,
        2 * a.hidden * a.intermediate,
        a.hidden * a.intermediate,
    )
    return {(layer, index): size for layer in range(a.layers) for index, size in enumerate(sizes)}


def calibration_tokens(source: WeightSource, calibration_text: Path | None) -> NDArray[np.int64]:
    """Encode the calibration text as windows of token ids (n, window); see `quantize_model`."""
    from tokenizers import Tokenizer

    assets = source.tokenizer()
    tokenizer = Tokenizer.from_str(assets.json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # On the device, every text starts with this token, which has unusually large activations.
    start = tokenizer.token_to_id(assets.bos_token) if assets.bos_token else None
    return calibration_windows(
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        read_calibration_text(calibration_text),
        start=start,
    )
