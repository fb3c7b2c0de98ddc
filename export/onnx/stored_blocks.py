"""Writes the parts of a block-quantized matrix as constants, small in the file and exact once loaded.

onnxruntime multiplies 4-bit and 8-bit codes with float32 scales. What a file stores in fewer bits (2-bit to 6-bit
codes, 4-bit indices of levels, scales as float16 times a small integer) is stored as narrowly, and nodes widen it.
Their inputs are constants, so onnxruntime computes them once, when it loads the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.model.quantized_matrix import QuantizedMatrix, Source, TwoLevel
    from export.onnx.graph_writer import GraphWriter


def codes(graph: GraphWriter, name: str, matrix: QuantizedMatrix, *, table: bool = False) -> str:
    """Store codes as MatMulNBits wants them, (N, blocks, bytes) uint8, or (N, bytes) for a `table`."""
    rows, columns = matrix.shape
    shape = graph.constant(f"{name}.shape", np.array([rows, columns // matrix.block_size, -1], np.int64))
    if graph.has_value(f"{name}.codes"):
        # The embedding reads a few rows from the mapped file. onnxruntime loads and repacks only the head's copy.
        return graph.node("Reshape", [f"{name}.codes", shape], f"{name}.blocks")
    if matrix.parts:
        value = _joined(
            graph, f"{name}.codes", [codes(graph, own, part, table=True) for own, part in _named(name, matrix)]
        )
        return value if table else graph.node("Reshape", [value, shape], f"{name}.blocks")
    packing = matrix.source
    if packing is None or (packing.levels is None and packing.code_bits >= matrix.bits):
        packed = nibbles(matrix.codes) if matrix.bits == 4 else matrix.codes
        flat = packed if table else packed.reshape(rows, columns // matrix.block_size, -1)
        return graph.constant(f"{name}.codes", flat)
    value = _widened(graph, name, matrix, packing)
    return value if table else graph.node("Reshape", [value, shape], f"{name}.blocks")


def scales(graph: GraphWriter, name: str, matrix: QuantizedMatrix) -> str:
    """Store scales: (N, blocks) float32."""
    if graph.has_value(f"{name}.scales"):
        return f"{name}.scales"
    if matrix.parts:
        return _joined(graph, f"{name}.scales", [scales(graph, own, part) for own, part in _named(name, matrix)])
    if matrix.source is None:
        return graph.half_constant(f"{name}.scales", matrix.scales)
    return _two_level(graph, f"{name}.scales", matrix.source.scales)


def zero_points(graph: GraphWriter, name: str, matrix: QuantizedMatrix) -> list[str]:
    """Store zero points as MatMulNBits wants them; an empty list if they are the midpoint."""
    if matrix.zeros is None:
        return []
    points = matrix.zeros
    if matrix.bits == 4:
        points = nibbles(np.pad(points, ((0, 0), (0, points.shape[1] % 2)), mode="edge"))
    if graph.has_value(f"{name}.zeros"):
        return [f"{name}.zeros"]
    if points.size and (points == points[0, 0]).all():
        size = graph.constant(f"{name}.zeros.shape", np.array(points.shape, np.int64))
        return [graph.node("Expand", [_small(graph, f"zero.{points[0, 0]}", points[0, 0]), size], f"{name}.zeros")]
    return [graph.constant(f"{name}.zeros", points)]


def rests(graph: GraphWriter, name: str, matrix: QuantizedMatrix) -> str:
    """Store scales * zeros - minima: (N, blocks) float32."""
    result = f"{name}.rests"
    if graph.has_value(result):
        return result
    low = _minima(graph, f"{name}.minima", matrix, name)
    points = matrix.zero_points()
    if matrix.bits == 4:
        stored = graph.narrow_constant(f"{name}.zeros.narrow", points, 4)
    else:
        [stored] = zero_points(graph, name, matrix) or [_small(graph, "midpoint", np.array(128, np.uint8))]
    wide = graph.node("Cast", [stored], f"{name}.zeros.wide", to=TensorProto.FLOAT)
    steps = graph.node("Mul", [scales(graph, name, matrix), wide], f"{name}.zeros.scaled")
    return graph.node("Sub", [steps, low], result)


def nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack two 4-bit codes of a row per byte, the first in the low half."""
    packed: NDArray[np.uint8] = values[:, 0::2] | (values[:, 1::2] << np.uint8(4))
    return packed


def _widened(graph: GraphWriter, name: str, matrix: QuantizedMatrix, packing: Source) -> str:
    """Widen narrow codes to (N, bytes) uint8."""
    result = f"{name}.codes"

    def plane(part: str, values: NDArray[np.uint8], bits: int, to: int = TensorProto.UINT8) -> str:
        stored = graph.narrow_constant(f"{name}.{part}", values, bits)
        return graph.node("Cast", [stored], f"{name}.{part}.wide", to=to)

    if packing.levels is not None:
        order = np.argsort(packing.levels)
        indices = order[np.searchsorted(packing.levels[order], matrix.codes)].astype(np.uint8)
        wide = plane("indices", indices, 4, TensorProto.INT32)
        return graph.node("Gather", [_small(graph, "levels", packing.levels), wide], result, axis=0)
    if matrix.bits == 8 and packing.code_bits <= 4:
        stored = graph.narrow_constant(f"{name}.low", matrix.codes, 4 if packing.code_bits > 2 else 2)
        return graph.node("Cast", [stored], result, to=TensorProto.UINT8)
    if matrix.bits == 4:  # bytes of two codes, from the even and the odd columns
        two = matrix.codes & np.uint8(3)
        low, high = plane("even", two[:, 0::2], 2), plane("odd", two[:, 1::2], 2)
    else:
        low, high = plane("low", matrix.codes & np.uint8(15), 4), plane("high", matrix.codes >> np.uint8(4), 2)
    four = _small(graph, "four", np.array(4, np.uint8))
    raised = graph.node("BitShift", [high, four], f"{name}.raised", direction="LEFT")
    if matrix.bits == 8 or packing.code_bits != 3:
        return graph.node("BitwiseOr", [low, raised], result)
    pairs = graph.node("BitwiseOr", [low, raised], f"{name}.pairs")
    return graph.node("BitwiseOr", [pairs, _third_bits(graph, name, matrix)], result)


def _third_bits(graph: GraphWriter, name: str, matrix: QuantizedMatrix) -> str:
    """Widen the highest bits of 3-bit codes, 8 per byte, to their places in bytes of two codes: (N, K // 2) uint8.

    Bits i and i + 4 of a byte belong to a pair in the i-th quarter of the row.
    """
    rows, columns = matrix.shape
    bits = (matrix.codes >> np.uint8(2)).reshape(rows, 4, columns // 8, 2)
    packed = np.zeros((rows, columns // 8), np.uint8)
    for quarter in range(4):
        packed |= (bits[:, quarter, :, 0] | bits[:, quarter, :, 1] << np.uint8(4)) << np.uint8(quarter)
    stored = graph.constant(f"{name}.third", packed[:, None])
    shifts = _small(graph, "quarters", np.arange(4, dtype=np.uint8)[:, None])
    apart = graph.node("BitShift", [stored, shifts], f"{name}.third.apart", direction="RIGHT")
    chosen = graph.node("BitwiseAnd", [apart, _small(graph, "pair", np.array(17, np.uint8))], f"{name}.third.chosen")
    two = _small(graph, "two", np.array(2, np.uint8))
    raised = graph.node("BitShift", [chosen, two], f"{name}.third.raised", direction="LEFT")
    shape = graph.constant(f"{name}.third.shape", np.array([rows, columns // 2], np.int64))
    return graph.node("Reshape", [raised, shape], f"{name}.third.wide")


def _minima(graph: GraphWriter, result: str, matrix: QuantizedMatrix, name: str) -> str:
    if matrix.parts:
        return _joined(
            graph, result, [_minima(graph, f"{own}.minima", part, own) for own, part in _named(name, matrix)]
        )
    points = matrix.zero_points()
    if matrix.minima is None and matrix.residual is None and (points == points[0, 0]).all():
        zero = _small(graph, f"zero.{points[0, 0]}.wide", points[0, 0].astype(np.float32))
        return graph.node("Mul", [scales(graph, name, matrix), zero], result)
    if matrix.minima is None or matrix.source is None or matrix.source.minima is None:
        return graph.half_constant(result, matrix.lowest())
    return _two_level(graph, result, matrix.source.minima)


def _named(name: str, matrix: QuantizedMatrix) -> list[tuple[str, QuantizedMatrix]]:
    return [(f"{name}.part{index}", part) for index, part in enumerate(matrix.parts)]


def _joined(graph: GraphWriter, result: str, parts: list[str]) -> str:
    return graph.node("Concat", parts, result, axis=0)


def _two_level(graph: GraphWriter, name: str, values: TwoLevel) -> str:
    units = values.units
    if values.steps is None:
        return graph.half_constant(name, units.astype(np.float32))
    rows, count = values.steps.shape
    stored = graph.constant(f"{name}.units", units[..., None])
    wide = graph.node("Cast", [stored], f"{name}.units.wide", to=TensorProto.FLOAT)
    cut = values.steps.reshape(rows, units.shape[1], -1)
    small = cut.dtype == np.uint8 and not (cut >> 4).any()
    steps = graph.narrow_constant(f"{name}.steps", cut, 4) if small else graph.constant(f"{name}.steps", cut)
    many = graph.node("Cast", [steps], f"{name}.steps.wide", to=TensorProto.FLOAT)
    product = graph.node("Mul", [wide, many], f"{name}.product")
    return graph.node("Reshape", [product, graph.constant(f"{name}.shape", np.array([rows, count], np.int64))], name)


def _small(graph: GraphWriter, name: str, values: NDArray[Any]) -> str:
    return graph.constant(f"blocks.{name}", values)
