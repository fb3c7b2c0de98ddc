"""How a weight matrix becomes nodes: dense, or in blocks of small integers, with an optional LoRA side path."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.model.quantized_matrix import Matrix, QuantizedMatrix, midpoint
from export.quantization.quantize import residual_columns, residual_mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.onnx.graph_writer import GraphWriter


# int8 activations: 3 times the speed of float32 ones on one row, at a loss far below that of 4-bit weights.
ACCURACY_LEVEL = 4
EXACT_ACCURACY_LEVEL = 1


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
        graph: where nodes go.
        x: (S, K) float32.
        name: of the result and, with suffixes, of the weights.
        matrices: each (N_i, K).
        biases: each (N_i,), or none at all.
        exact: multiply quantized weights with float32 inputs, not with int8 ones.

    Returns:
        The value's name: (S, sum of N_i) float32.
    """
    packed = pack(matrices)
    if packed is None:
        parts = [
            linear(graph, x, f"{name}.{index}", [matrix], [biases[index]] if biases else [], exact=exact)
            for index, matrix in enumerate(matrices)
        ]
        return graph.node("Concat", parts, name, axis=1)
    bias = [graph.constant(f"{name}.bias", np.concatenate(biases))] if biases else []
    if isinstance(packed, QuantizedMatrix):
        return _quantized(graph, x, name, packed, bias, EXACT_ACCURACY_LEVEL if exact else ACCURACY_LEVEL)
    weight = graph.constant(f"{name}.weight", packed)
    return graph.node("Gemm", [x, weight, *bias], name, transB=1)


def pack(matrices: Sequence[Matrix]) -> Matrix | None:
    """Put matrices with the same input one below the other; None where dense and quantized ones meet."""
    dense = [matrix for matrix in matrices if not isinstance(matrix, QuantizedMatrix)]
    quantized = [matrix for matrix in matrices if isinstance(matrix, QuantizedMatrix)]
    if dense and quantized:
        return None
    if dense:
        return dense[0] if len(dense) == 1 else np.concatenate(dense)
    bits = max(matrix.bits for matrix in quantized)
    same = [widen(matrix, bits) for matrix in quantized]
    if len(same) == 1:
        return same[0]
    zeros = residual = None
    if any(matrix.zeros is not None for matrix in same):
        zeros = np.concatenate([_zeros(matrix) for matrix in same])
    if any(matrix.residual is not None for matrix in same):
        residual = np.concatenate([_residual(matrix) for matrix in same])
    return QuantizedMatrix(
        bits,
        same[0].block_size,
        np.concatenate([matrix.codes for matrix in same]),
        np.concatenate([matrix.scales for matrix in same]),
        zeros,
        residual,
    )


def widen(matrix: QuantizedMatrix, bits: int) -> QuantizedMatrix:
    """The same numbers with `bits` a code, exactly."""
    if matrix.bits == bits:
        return matrix
    if matrix.zeros is not None:
        return replace(matrix, bits=bits)
    return replace(matrix, bits=bits, codes=matrix.codes + np.uint8(midpoint(bits) - midpoint(matrix.bits)))


def add_lora(graph: GraphWriter, x: str, base: str, prefix: str, in_features: int, out_features: int) -> str:
    """Append `base + x @ A @ B`; A and B are optional inputs `{prefix}.lora_A` and `.lora_B`, by default of rank 0."""
    a = graph.optional_input(f"{prefix}.lora_A", [in_features, "rank"], np.zeros((in_features, 0), np.float32))
    b = graph.optional_input(f"{prefix}.lora_B", ["rank", out_features], np.zeros((0, out_features), np.float32))
    down = graph.node("MatMul", [x, a], f"{prefix}.lora_down")
    # Gemm adds in the same node, and with rank 0 merely copies.
    return graph.node("Gemm", [down, b, base], f"{prefix}.adapted")


def embedding(graph: GraphWriter, token_ids: str, name: str, matrix: Matrix) -> str:
    """Append the look-up of `token_ids` (S,) in (vocabulary, hidden); returns (S, hidden) float32."""
    if not isinstance(matrix, QuantizedMatrix):
        return graph.node("Gather", [graph.constant(f"{name}.weight", matrix), token_ids], f"{name}.out", axis=0)
    hidden = matrix.codes.shape[1]
    matrix = _with_residual_columns(matrix)
    columns = matrix.codes.shape[1]
    codes, scales, zeros = _stored(graph, name, matrix, table=True)
    found = graph.node(
        "GatherBlockQuantized",
        [codes, token_ids, scales, *zeros],
        f"{name}.out",
        bits=matrix.bits,
        block_size=matrix.block_size,
        gather_axis=0,
        quantize_axis=1,
    )
    extra = columns - hidden
    if not extra:
        return found
    # Each residual goes to all columns of its block.
    sizes = graph.constant(f"{name}.sizes", np.array([hidden, extra], np.int64))
    plain, residual = graph.nodes("Split", [found, sizes], [f"{name}.plain", f"{name}.residual"], axis=1)
    blocks = hidden // matrix.block_size
    spread = residual_mix(blocks).T @ np.kron(np.eye(blocks), np.ones((1, matrix.block_size))).astype(np.float32)
    return graph.node("Gemm", [residual, graph.constant(f"{name}.spread", spread), plain], f"{name}.whole")


def head(graph: GraphWriter, x: str, rows: str, name: str, matrix: Matrix, output: str) -> str:
    """Append `output = x[rows] @ matrix.T`; called with the embedding's name, it shares the embedding's constants.

    Rows are chosen before the product, because one of a vocabulary's width costs as much as all the layers of a row.
    """
    if not isinstance(matrix, QuantizedMatrix):
        wanted = graph.node("Gather", [x, rows], f"{output}.rows", axis=0)
        return graph.node("Gemm", [wanted, graph.constant(f"{name}.weight", matrix)], output, transB=1)
    if matrix.residual is not None:  # summed before rows are chosen: there may be none, and Pad wants some
        x = _with_block_sums(graph, x, matrix)
        matrix = _with_residual_columns(matrix)
    wanted = graph.node("Gather", [x, rows], f"{output}.rows", axis=0)
    codes, scales, zeros = _stored(graph, name, matrix)
    return _matmul(graph, wanted, matrix, [codes, scales, *zeros], [], output, ACCURACY_LEVEL)


def _quantized(
    graph: GraphWriter, x: str, name: str, matrix: QuantizedMatrix, bias: Sequence[str], accuracy_level: int
) -> str:
    if matrix.residual is not None:
        x = _with_block_sums(graph, x, matrix)
        matrix = _with_residual_columns(matrix)
    codes, scales, zeros = _stored(graph, name, matrix)
    return _matmul(graph, x, matrix, [codes, scales, *zeros], bias, name, accuracy_level)


def _with_residual_columns(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """Carry the residual as more columns: a block's residual times the sum of the block's inputs."""
    if matrix.residual is None:
        return matrix
    extra = widen(residual_columns(matrix.residual), matrix.bits)
    return QuantizedMatrix(
        matrix.bits,
        matrix.block_size,
        np.concatenate([matrix.codes, extra.codes], axis=1),
        np.concatenate([matrix.scales, extra.scales], axis=1),
        np.concatenate([_zeros(matrix), _zeros(extra)], axis=1),
    )


def _with_block_sums(graph: GraphWriter, x: str, matrix: QuantizedMatrix) -> str:
    """Append to x (S, K) the sums of its blocks, padded to whole blocks."""
    blocks = matrix.scales.shape[1]
    summed = f"{x}.with_sums"
    if not graph.has_value(summed):
        # Not a product with a 0/1 matrix: reading that one takes a tenth of a decoding step.
        shape = graph.constant(f"blocks.{blocks}", np.array([0, blocks, matrix.block_size], np.int64))
        cut = graph.node("Reshape", [x, shape], f"{x}.blocks")
        axis = graph.constant("axis_last", np.array([-1], np.int64))
        sums = graph.node("ReduceSum", [cut, axis], f"{x}.sums", keepdims=0)
        mix = graph.constant(f"residual_mix.{blocks}", residual_mix(blocks))
        sums = graph.node("MatMul", [sums, mix], f"{x}.sums.mixed")
        graph.node("Concat", [x, sums], summed, axis=1)
    return summed


def _stored(
    graph: GraphWriter, name: str, matrix: QuantizedMatrix, *, table: bool = False
) -> tuple[str, str, list[str]]:
    """Codes (N, blocks, bytes), or (N, bytes) for a `table`, scales (N, blocks) and zero points."""
    rows, columns = matrix.codes.shape
    blocks = columns // matrix.block_size
    if graph.has_value(f"{name}.codes"):
        zeros = [f"{name}.zeros"] if matrix.zeros is not None else []
        # A table is read where the file is mapped, a few rows of it; it is the head's copy that is loaded and repacked.
        shape = graph.constant(f"{name}.shape", np.array([rows, blocks, -1], np.int64))
        return graph.node("Reshape", [f"{name}.codes", shape], f"{name}.blocks"), f"{name}.scales", zeros
    packed = _nibbles(matrix.codes) if matrix.bits == 4 else matrix.codes
    codes = graph.constant(f"{name}.codes", packed if table else packed.reshape(rows, blocks, -1))
    scales = graph.half_constant(f"{name}.scales", matrix.scales)
    if matrix.zeros is None:
        return codes, scales, []
    points = matrix.zeros
    if matrix.bits == 4:
        points = _nibbles(np.pad(points, ((0, 0), (0, points.shape[1] % 2))))
    return codes, scales, [graph.constant(f"{name}.zeros", points)]


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


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte, the first in the low half."""
    packed: NDArray[np.uint8] = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return packed


def _zeros(matrix: QuantizedMatrix) -> NDArray[np.uint8]:
    if matrix.zeros is not None:
        return matrix.zeros
    return np.full(matrix.scales.shape, midpoint(matrix.bits), np.uint8)


def _residual(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    return matrix.residual if matrix.residual is not None else np.zeros(matrix.scales.shape, np.float32)
