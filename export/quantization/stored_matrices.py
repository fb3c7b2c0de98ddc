"""Prepares each matrix of a model for a quantization scheme, independent of the runtime."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, get_args

from edge_runtime.bundle.manifest import Quantization
from export.errors import UnsupportedModelError, UnsupportedQuantizationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from export.model.quantized_matrix import Matrix, QuantizedMatrix
    from export.model.weights import WeightSource
    from export.progress import Progress

Quantize = Literal["keep", "fp32", "int8", "mixed", "int4"]


def chosen_scheme(path: Path, wanted: str | None) -> Quantize:
    """Choose the scheme for a model; None means "keep" for a GGUF file and "int8" for a directory.

    Raises:
        UnsupportedQuantizationError: the scheme does not exist or doesn't fit this kind of model.
    """
    if wanted is None:
        return "keep" if path.is_file() else "int8"
    for scheme in get_args(Quantize):
        if scheme == wanted:
            if scheme == "keep" and path.is_dir():
                raise UnsupportedQuantizationError(
                    f"Nothing is quantized here that could be kept: {path}. Use `quantize` fp32, int8, mixed or int4."
                )
            found: Quantize = scheme
            return found
    raise UnsupportedQuantizationError(f"`quantize` must be one of {', '.join(get_args(Quantize))}, not '{wanted}'.")


def stored_matrices(
    source: WeightSource, scheme: Quantize, calibration: Path | None, report: Progress
) -> tuple[Callable[[str], Matrix], Quantization]:
    """Return a function from a matrix's Hugging Face name to its stored form, and the manifest's description.

    Args:
        source: the model.
        scheme: see `Quantize`.
        calibration: text for the calibrated schemes; None uses the text shipped with this package.
        report: see `export.progress`.

    Raises:
        SourceError: a tensor or the calibration text is missing or damaged.
        UnsupportedQuantizationError: rows can't be split into blocks.
    """
    if scheme == "fp32":
        return source.read, Quantization(scheme, "float32, nothing quantized")
    if scheme == "keep":

        def kept(name: str) -> Matrix:
            blocks = source.blocks(name)
            return source.read(name) if blocks is None else blocks

        return kept, Quantization(scheme, f"the blocks of the GGUF file, not quantized again: {source.quantization()}")
    from export.quantization.schemes import describe, quantize_model

    report("Quantizing", 0, 1)
    quantized: Mapping[str, QuantizedMatrix] = quantize_model(source, scheme, calibration, report)
    return quantized.__getitem__, Quantization(scheme, describe(scheme, source.architecture))


def check_names(source: WeightSource, expected: frozenset[str]) -> None:
    """Reject a model with unexpected tensors, because our decoder would not compute the same function.

    Raises:
        UnsupportedModelError: there are unexpected tensors, or expected ones are missing.
    """
    found = Counter(source.names())
    unknown = sorted(found.keys() - expected)
    if unknown:
        raise UnsupportedModelError(
            f"The model has {len(unknown)} tensors that no graph of ours uses: {source.path} ('{unknown[0]}', ...)."
        )
    missing = sorted(expected - found.keys())
    if missing:
        raise UnsupportedModelError(
            f"The model lacks {len(missing)} tensors: {source.path} ('{missing[0]}', ...). Download it again."
        )
