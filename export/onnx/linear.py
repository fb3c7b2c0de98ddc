"""Writes weight matrices as graph nodes: dense or block-quantized, with an optional LoRA side path."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.model.quantized_matrix import Matrix, QuantizedMatrix, midpoint, stack_rows
from export.onnx import stored_blocks
from export.quantization.quantize import residual_columns, residual_mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.onnx.graph_writer import GraphWriter


# int8 activations: 3 times as fast as float32 on one row, and they lose far less than 4-bit weights do.
ACCURACY_LEVEL = 4
EXACT_ACCURACY_LEVEL = 1
_WIDENED_AT_MOST = 1 << 20  # weights: half a megabyte more to read, some 20 microseconds


def linear(
    graph: GraphWriter,
    x: str,
    name: str,
    matrices: Sequence[Matrix],
    biases: Sequence[NDArray[np.float32]] = (),
    *,
    exact: bool = False,
) -> str:
    """Append `x @ concat(matrices).T + concat(biases)`.

    Args:
        graph: the graph to extend.
        x: (S, K) float32.
        name: name of the result; with suffixes, also of the weights.
        matrices: each (N_i, K).
        biases: each (N_i,); empty if there are none.
        exact: multiply quantized weights with float32 inputs instead of int8 ones.

    Returns:
        The value's name: (S, sum of N_i) float32.
    """
    if len(matrices) > 1 and (runs := _runs(matrices)) != [len(matrices)]:
        parts, stop = [], 0
        for index, count in enumerate(runs):
            start, stop = stop, stop + count
            own = biases[start:stop] if biases else ()
            parts.append(linear(graph, x, f"{name}.{index}", matrices[start:stop], own, exact=exact))
        return graph.node("Concat", parts, name, axis=1)
    packed = pack(matrices)
    bias = [graph.constant(f"{name}.bias", np.concatenate(biases))] if biases else []
    if isinstance(packed, QuantizedMatrix):
        return _quantized(graph, x, name, packed, bias, EXACT_ACCURACY_LEVEL if exact else ACCURACY_LEVEL)
    return graph.node("Gemm", [x, _dense(graph, name, packed), *bias], name, transB=1)


def pack(matrices: Sequence[Matrix]) -> Matrix:
    """Stack matrices that share an input; they are all dense, or all quantized in blocks of one size."""
    dense = [matrix for matrix in matrices if not isinstance(matrix, QuantizedMatrix)]
    if dense:
        return dense[0] if len(dense) == 1 else np.concatenate(dense)
    quantized = [matrix for matrix in matrices if isinstance(matrix, QuantizedMatrix)]
    bits = max(matrix.bits for matrix in quantized)
    return stack_rows([widen(matrix, bits) for matrix in quantized])


def widen(matrix: QuantizedMatrix, bits: int) -> QuantizedMatrix:
    """Store the same values with `bits` per code, exactly."""
    if matrix.bits == bits:
        return matrix
    if matrix.zeros is not None:
        return replace(matrix, bits=bits)
    shifted = matrix.codes + np.uint8(midpoint(bits) - midpoint(matrix.bits))
    return replace(matrix, bits=bits, codes=shifted, source=None)


def _runs(matrices: Sequence[Matrix]) -> list[int]:
    """Split matrices, in order, into runs that become one product each; returns the runs' lengths.

    A wide code takes longer to read, but a small matrix is read faster than a further product starts.
    """
    runs: list[int] = []
    for index, matrix in enumerate(matrices):
        if runs and _joins(matrices[index - 1], matrix):
            runs[-1] += 1
        else:
            runs.append(1)
    return runs


def _joins(one: Matrix, other: Matrix) -> bool:
    if not isinstance(one, QuantizedMatrix) or not isinstance(other, QuantizedMatrix):
        return not isinstance(one, QuantizedMatrix) and not isinstance(other, QuantizedMatrix)
    if one.block_size != other.block_size or (one.residual is None) != (other.residual is None):
        return False
    narrow = [matrix for matrix in (one, other) if matrix.bits < max(one.bits, other.bits)]
    return all(matrix.codes.size <= _WIDENED_AT_MOST for matrix in narrow)


def add_lora(graph: GraphWriter, x: str, base: str, prefix: str, in_features: int, out_features: int) -> str:
    """Append `base + x @ A @ B`; A and B are the optional inputs `{prefix}.lora_A` and `.lora_B` (default: rank 0)."""
    a = graph.optional_input(f"{prefix}.lora_A", [in_features, "rank"], np.zeros((in_features, 0), np.float32))
    b = graph.optional_input(f"{prefix}.lora_B", ["rank", out_features], np.zeros((0, out_features), np.float32))
    down = graph.node("MatMul", [x, a], f"{prefix}.lora_down")
    # Gemm adds in the same node; with rank 0 it only copies.
    return graph.node("Gemm", [down, b, base], f"{prefix}.adapted")


def embedding(graph: GraphWriter, token_ids: str, name: str, matrix: Matrix) -> str:
    """Append the look-up of `token_ids` (S,) in (vocabulary, hidden); returns (S, hidden) float32."""
    if not isinstance(matrix, QuantizedMatrix):
        stored = graph.short_constant(f"{name}.weight.half", matrix)
        if stored is None:
            return graph.node("Gather", [graph.constant(f"{name}.weight", matrix), token_ids], f"{name}.out", axis=0)
        found = graph.node("Gather", [stored, token_ids], f"{name}.short", axis=0)
        return graph.node("Cast", [found], f"{name}.out", to=TensorProto.FLOAT)
    hidden = matrix.codes.shape[1]
    matrix = _with_residual_columns(matrix)
    columns = matrix.codes.shape[1]
    codes = stored_blocks.codes(graph, name, matrix, table=True)
    inputs = [codes, token_ids, stored_blocks.scales(graph, name, matrix)]
    found = graph.node(
        "GatherBlockQuantized",
        inputs + stored_blocks.zero_points(graph, name, matrix),
        f"{name}.out",
        bits=matrix.bits,
        block_size=matrix.block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    if matrix.minima is not None:
        return _with_rests(graph, token_ids, name, matrix, found)
    extra = columns - hidden
    if not extra:
        return found
    # Add each residual to all columns of its block.
    sizes = graph.constant(f"{name}.sizes", np.array([hidden, extra], np.int64))
    plain, residual = graph.nodes("Split", [found, sizes], [f"{name}.plain", f"{name}.residual"], axis=1)
    blocks = hidden // matrix.block_size
    spread = residual_mix(blocks).T @ np.kron(np.eye(blocks), np.ones((1, matrix.block_size))).astype(np.float32)
    return graph.node("Gemm", [residual, graph.constant(f"{name}.spread", spread), plain], f"{name}.whole")


def _with_rests(graph: GraphWriter, token_ids: str, name: str, matrix: QuantizedMatrix, found: str) -> str:
    """Add each block's rest to its columns, without rounding: (S, hidden)."""
    rests = graph.node("Gather", [stored_blocks.rests(graph, name, matrix), token_ids], f"{name}.own_rests", axis=0)
    last = graph.constant("axis_last", np.array([-1], np.int64))
    column = graph.node("Unsqueeze", [rests, last], f"{name}.rest_column")
    cut = graph.constant(f"{name}.cut", np.array([0, matrix.scales.shape[1], matrix.block_size], np.int64))
    blocks = graph.node("Add", [graph.node("Reshape", [found, cut], f"{name}.cut_rows"), column], f"{name}.added")
    whole = graph.constant(f"{name}.row", np.array([0, matrix.shape[1]], np.int64))
    return graph.node("Reshape", [blocks, whole], f"{name}.whole")


def head(graph: GraphWriter, x: str, rows: str, name: str, matrix: Matrix, output: str) -> str:
    """Append `output = x[rows] @ matrix.T`; if `name` is the embedding's, they share constants.

    Rows are selected before the product, because the head costs as much per row as all layers together.
    """
    if not isinstance(matrix, QuantizedMatrix):
        wanted = graph.node("Gather", [x, rows], f"{output}.rows", axis=0)
        return graph.node("Gemm", [wanted, _dense(graph, name, matrix)], output, transB=1)
    # Sum before selecting rows: there may be none, and sums need some.
    if matrix.residual is not None:
        x = _with_block_sums(graph, x, matrix)
        matrix = _with_residual_columns(matrix)
    wanted = graph.node("Gather", [x, rows], f"{output}.rows", axis=0)
    sums = None
    if matrix.minima is not None:
        sums = graph.node("Gather", [_block_sums(graph, x, matrix), rows], f"{output}.sums", axis=0)
    return _product(graph, wanted, name, matrix, [], output, ACCURACY_LEVEL, sums)


def _dense(graph: GraphWriter, name: str, matrix: NDArray[np.float32]) -> str:
    """Store a matrix as float32, or in half of that if this is exact."""
    return graph.half_constant(f"{name}.weight", matrix)


def _quantized(
    graph: GraphWriter, x: str, name: str, matrix: QuantizedMatrix, bias: Sequence[str], accuracy_level: int
) -> str:
    if matrix.residual is not None:
        x = _with_block_sums(graph, x, matrix)
        matrix = _with_residual_columns(matrix)
    return _product(graph, x, name, matrix, bias, name, accuracy_level)


def _product(
    graph: GraphWriter,
    x: str,
    name: str,
    matrix: QuantizedMatrix,
    bias: Sequence[str],
    output: str,
    accuracy_level: int,
    sums: str | None = None,
) -> str:
    """Append x (S, K) times the matrix that is stored under `name`; `sums` are x's block sums, if they are known."""
    weights = [stored_blocks.codes(graph, name, matrix), stored_blocks.scales(graph, name, matrix)]
    weights += stored_blocks.zero_points(graph, name, matrix)
    if matrix.minima is None:
        return _matmul(graph, x, matrix, weights, bias, output, accuracy_level)
    product = _matmul(graph, x, matrix, weights, bias, f"{output}.centered", accuracy_level)
    # The rests multiply the exact sums of the blocks' inputs in float32. Gemm adds in the same node.
    sums = sums or _block_sums(graph, x, matrix)
    return graph.node("Gemm", [sums, stored_blocks.rests(graph, name, matrix), product], output, transB=1)


def _with_residual_columns(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """Append the residual as columns, which multiply the sums of the blocks' inputs."""
    if matrix.residual is None:
        return matrix
    extra = widen(residual_columns(matrix.residual), matrix.bits)
    return QuantizedMatrix(
        matrix.bits,
        matrix.block_size,
        np.concatenate([matrix.codes, extra.codes], axis=1),
        np.concatenate([matrix.scales, extra.scales], axis=1),
        np.concatenate([matrix.zero_points(), extra.zero_points()], axis=1),
    )


def _with_block_sums(graph: GraphWriter, x: str, matrix: QuantizedMatrix) -> str:
    """Append the block sums of x (S, K), padded to whole blocks."""
    blocks = matrix.scales.shape[1]
    summed = f"{x}.with_sums"
    if not graph.has_value(summed):
        sums = _block_sums(graph, x, matrix)
        mix = graph.constant(f"residual_mix.{blocks}", residual_mix(blocks))
        sums = graph.node("MatMul", [sums, mix], f"{x}.sums.mixed")
        graph.node("Concat", [x, sums], summed, axis=1)
    return summed


def _block_sums(graph: GraphWriter, x: str, matrix: QuantizedMatrix) -> str:
    """Append the sums of x (S, K) over the matrix's blocks: (S, blocks)."""
    blocks = matrix.scales.shape[1]
    summed = f"{x}.sums.{matrix.block_size}"
    if graph.has_value(summed):
        return summed
    # A product with a 0/1 matrix would be slower: reading the matrix takes a tenth of a decoding step.
    shape = graph.constant(f"blocks.{blocks}.{matrix.block_size}", np.array([0, blocks, matrix.block_size], np.int64))
    cut = graph.node("Reshape", [x, shape], f"{x}.blocks.{matrix.block_size}")
    axis = graph.constant("axis_last", np.array([-1], np.int64))
    return graph.node("ReduceSum", [cut, axis], summed, keepdims=0)


def _matmul(
    graph: GraphWriter,
    x: str,
    matrix: QuantizedMatrix,
    weights: Sequence[str],
    bias: Sequence[str],
    output: str,
    accuracy_level: int,
) -> str:
    inputs = [x, *weights]
    if bias:
        inputs += [""] * (5 - len(inputs)) + list(bias)
    rows, columns = matrix.codes.shape
    return graph.node(
        "MatMulNBits",
        inputs,
        output,
        K=columns,
        N=rows,
        bits=matrix.bits,
        block_size=matrix.block_size,
        accuracy_level=accuracy_level,
    )
