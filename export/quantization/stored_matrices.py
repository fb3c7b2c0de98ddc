"""Prepares each matrix of a model for a quantization scheme, independent of the runtime."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, get_args

from edge_runtime.bundle.manifest import BACKEND_ONNX, Quantization
from export.errors import UnsupportedModelError, UnsupportedQuantizationError
from export.model.packed.checkpoint import directory_packing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from export.model.quantized_matrix import Matrix, QuantizedMatrix
    from export.model.weights import WeightSource
    from export.progress import Progress

Quantize = Literal["keep", "fp32", "int8", "mixed", "int4"]

_ROUNDED = "rounded to the nearest of 8 bits everywhere, symmetric blocks of 32"


def chosen_scheme(path: Path, wanted: str | None) -> Quantize:
    """Choose the scheme for a model; None means "keep" for a GGUF file and "int8" for a directory.

    A directory whose matrices are packed in a form that can be kept counts like a GGUF file.

    Raises:
        UnsupportedModelError: the directory is quantized in a form that can't be read.
        UnsupportedQuantizationError: the scheme does not exist or doesn't fit this kind of model.
    """
    if wanted is None:
        return "keep" if path.is_file() or ((packing := directory_packing(path)) and packing.exact) else "int8"
    for scheme in get_args(Quantize):
        if scheme == wanted:
            packing = directory_packing(path)
            if scheme == "keep" and path.is_dir() and packing is not None and not packing.exact:
                raise UnsupportedQuantizationError(
                    f"These matrices can't be carried over exactly, they are {packing.description}: {path}. Use "
                    "`quantize` int8."
                )
            if scheme == "keep" and path.is_dir() and packing is None:
                raise UnsupportedQuantizationError(
                    f"Nothing is quantized here that could be kept: {path}. Use `quantize` fp32, int8, mixed or int4."
                )
            found: Quantize = scheme
            return found
    raise UnsupportedQuantizationError(f"`quantize` must be one of {', '.join(get_args(Quantize))}, not '{wanted}'.")


def check_kept(path: Path, scheme: Quantize, backend: str = BACKEND_ONNX) -> None:
    """Refuse to keep blocks that a runtime has no form for, from the file's header alone.

    XNNPACK, ExecuTorch's delegate, has 4-bit blocks of 32 and 8-bit rows.

    Raises:
        UnsupportedQuantizationError: a matrix can't be carried over.
        SourceError: the file is damaged.
    """
    if scheme != "keep":
        return
    if path.is_dir():
        if backend != BACKEND_ONNX:
            raise UnsupportedQuantizationError(
                f"The matrices of this checkpoint can't be carried over exactly by ExecuTorch: {path}. Use `quantize` "
                "int8."
            )
        return
    from gguf import GGMLQuantizationType as Kind

    from export.model.gguf.kept import refuse_what_can_not_be_kept

    if backend == BACKEND_ONNX:
        refuse_what_can_not_be_kept(path)
    else:
        refuse_what_can_not_be_kept(path, (Kind.Q4_0, Kind.Q4_1, Kind.Q8_0), " by ExecuTorch")


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
        own = source.quantization()
        origin = "nothing quantized" if own == "not quantized" else f"dequantized weights: {own}"
        return source.read, Quantization(scheme, f"float32, {origin}")
    if scheme == "keep":

        def kept(name: str) -> Matrix:
            blocks = source.blocks(name)
            return source.read(name) if blocks is None else blocks

        return kept, Quantization(scheme, f"the model's own blocks, not quantized again: {source.quantization()}")
    from export.quantization.quantize import check_widths, quantize

    check_widths(source.architecture)
    if scheme == "int8":
        # Calibration gains nothing at 8 bits. Each matrix is read and rounded when it is written, so only one of them
        # is in memory.
        return lambda name: quantize(source.read(name), 8), Quantization(scheme, _ROUNDED)
    from export.quantization.schemes import DESCRIPTIONS, quantize_model

    report("Quantizing", 0, 1)
    quantized: Mapping[str, QuantizedMatrix] = quantize_model(source, scheme, calibration, report)
    own = source.quantization()
    origin = "" if own == "not quantized" else f"; from dequantized weights: {own}"
    return quantized.__getitem__, Quantization(scheme, DESCRIPTIONS[scheme] + origin)


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
