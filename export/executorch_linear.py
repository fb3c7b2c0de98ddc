"""Matrices as ExecuTorch's XNNPACK delegate multiplies them: 4-bit blocks or 8-bit rows with 8-bit inputs.

XNNPACK rounds every token's input to 8 bits, and knows two kinds of weights beside float32 ones: 4 bits in blocks with
a bfloat16 scale and no zero point, and 8 bits with one scale a row. A 4-bit block's offset is a product of its own, of
sums of the input's blocks: scale * (code - 8) * x + offset * sum(x). That one is not rounded: 8 bits of a sum, times an
offset that is several steps of the block's scale, would be most of the error of the whole (dNLL 0.21 instead of 0.01).

Quantization is written out as operations that the delegate's partitioner knows, so that what runs in torch is what
runs on the device, and a group of matrices rounds its common input once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import nn
from torch.nn.functional import linear

from export.quantize import BLOCK_SIZE, QuantizedMatrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from export.linear import Matrix

_MIDDLE = 8
_SMALLEST_SCALE = np.float32(2.0**-24)


def block_linear(matrices: Sequence[Matrix], biases: Sequence[NDArray[np.float32]] = ()) -> nn.Module:
    """A module that maps x (1, S, K) float32 to x @ concat(matrices).T + concat(biases), (1, S, sum of N_i).

    Args:
        matrices: each (N_i, K), K a multiple of 32 where quantized.
        biases: each (N_i,), or none at all.
    """
    return _Joined(shared_linears(matrices, biases))


def shared_linears(matrices: Sequence[Matrix], biases: Sequence[NDArray[np.float32]] = ()) -> SharedLinears:
    """As `block_linear`, but the module returns one tensor for each matrix: nothing has to be split afterwards."""
    return SharedLinears(matrices, biases)


def embedding_module(matrix: Matrix) -> nn.Module:
    """A module that looks up token ids (1, S) int64 in (vocabulary, hidden): (1, S, hidden) float32."""
    if not isinstance(matrix, QuantizedMatrix):
        return nn.Embedding.from_pretrained(torch.from_numpy(matrix))
    return _Embedding(matrix)


def head_module(matrix: Matrix) -> nn.Module:
    """A module that maps hidden states (1, R, hidden) float32 to logits (1, R, vocabulary)."""
    return _Joined(SharedLinears([matrix]))


class _Joined(nn.Module):
    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.parts(x)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


@dataclass(frozen=True, eq=False, slots=True)
class Conditioning:
    """How an input is made fit for 8 bits a token; the product stays what it was.

    Attributes:
        scales: (K,) float32 above 0, equal within a block: the input is divided by it, the weights multiplied.
        precise: columns of the input that are not rounded at all.
    """

    scales: NDArray[np.float32]
    precise: NDArray[np.int64]


class SharedLinears(nn.Module):
    """Matrices with one input; what is rounded is rounded once."""

    def __init__(self, matrices: Sequence[Matrix], biases: Sequence[NDArray[np.float32]] = ()) -> None:
        super().__init__()
        self._matrices = tuple(matrices)
        self.bias = nn.ParameterList(nn.Parameter(torch.from_numpy(bias), requires_grad=False) for bias in biases)
        columns = matrices[0].shape[1]
        self.condition(Conditioning(np.ones(columns, np.float32), np.empty(0, np.int64)))

    @property
    def rounds(self) -> bool:
        """Whether any of the matrices takes a rounded input."""
        return any(weight.rounds for weight in self.weights)

    def condition(self, conditioning: Conditioning) -> None:
        """Make the weights anew for an input that is conditioned before it is rounded."""
        scales, precise = conditioning.scales, conditioning.precise
        self.weights = nn.ModuleList(_weight(matrix, scales) for matrix in self._matrices)
        inverse = 1 / scales
        inverse[precise] = 0
        plain = bool((inverse == 1).all())
        self.register_buffer("inverse", None if plain or not self.rounds else torch.from_numpy(inverse))
        self._choose("picks", np.eye(len(scales), dtype=np.float32)[precise] if self.rounds else None)
        # The same for all inputs of one width, and in the file once.
        sums = np.kron(np.eye(len(scales) // BLOCK_SIZE), np.ones((1, BLOCK_SIZE)))
        self._choose("sums", sums if any(weight.offsets is not None for weight in self.weights) else None)
        for weight, matrix in zip(self.weights, self._matrices, strict=True):
            if weight.rounds and isinstance(matrix, QuantizedMatrix) and len(precise):
                columns = matrix.dequantize()[:, precise]
                if weight.offsets is not None:  # those reach the columns through the sums already
                    columns = columns - weight.offsets.numpy()[:, precise // BLOCK_SIZE]
                weight.register_buffer("columns", torch.from_numpy(np.ascontiguousarray(columns)))

    def _choose(self, name: str, matrix: NDArray[Any] | None) -> None:
        """A product with this matrix picks what of the input is not rounded; none where it has no rows."""
        rows = None if matrix is None or not len(matrix) else torch.from_numpy(matrix.astype(np.float32))
        self.register_buffer(name, rows)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, S, K) to one (1, S, N_i) for each matrix."""
        rounded = x
        if self.rounds:
            rounded = _rounded(x if self.inverse is None else x * self.inverse)
        picked = None if self.picks is None else linear(x, self.picks)
        sums = None if self.sums is None else linear(x, self.sums)
        biases = [*self.bias] or [None] * len(self.weights)
        outputs = []
        for weight, bias in zip(self.weights, biases, strict=True):
            output = linear(rounded if weight.rounds else x, weight(), bias)
            if weight.offsets is not None:
                output = output + linear(sums, weight.offsets)
            if weight.columns is not None:
                output = output + linear(picked, weight.columns)
            outputs.append(output)
        return tuple(outputs)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Each token's values to 8 bits and back, as the delegate does."""
    ops = torch.ops.quantized_decomposed
    scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = ops.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    rounded: torch.Tensor = ops.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)
    return rounded


class _Blocks(nn.Module):
    """4-bit blocks: codes (N, K) int8 from -8 to 7, scales (N, K // 32) that bfloat16 holds, offsets of that shape."""

    rounds = True

    def __init__(
        self, codes: NDArray[np.int8], scales: NDArray[np.float32], offsets: NDArray[np.float32] | None
    ) -> None:
        super().__init__()
        self.register_buffer("offsets", None if offsets is None else torch.from_numpy(offsets))
        self.register_buffer("columns", None)
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("zeros", torch.zeros(scales.shape, dtype=torch.int8))

    def forward(self) -> torch.Tensor:
        weight: torch.Tensor = torch.ops.quantized_decomposed.dequantize_per_channel_group(
            self.codes, self.scales, self.zeros, -8, 7, torch.int8, BLOCK_SIZE, torch.float32
        )
        return weight


class _Rows(nn.Module):
    """8-bit rows: codes (N, K) int8, scales (N,) float32."""

    rounds, offsets = True, None

    def __init__(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("columns", None)
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("zeros", torch.zeros(scales.shape, dtype=torch.int64))

    def forward(self) -> torch.Tensor:
        weight: torch.Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8
        )
        return weight


class _Dense(nn.Module):
    rounds, offsets, columns = False, None, None

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(matrix))

    def forward(self) -> Any:
        return self.matrix


class _Embedding(nn.Module):
    def __init__(self, matrix: QuantizedMatrix) -> None:
        super().__init__()
        import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  # registers embedding_byte

        codes, scales = _to_rows(matrix.dequantize())
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.from_numpy(scales))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.quantized_decomposed.embedding_byte(
            self.codes, self.scales, None, -127, 127, token_ids
        )
        return found


def _weight(matrix: Matrix, conditioned: NDArray[np.float32]) -> nn.Module:
    if not isinstance(matrix, QuantizedMatrix):
        return _Dense(matrix)
    if matrix.bits == 8:
        return _Rows(*_to_rows(matrix.dequantize() * conditioned))
    codes, scales, offsets = _symmetric_blocks(matrix, conditioned[::BLOCK_SIZE])
    return _Blocks(codes, scales, offsets if offsets.any() else None)


def _symmetric_blocks(
    matrix: QuantizedMatrix, conditioned: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes from -8 to 7, positive bfloat16 scales, and what every weight of a block is short of.

    Codes and scales are for an input divided by `conditioned` (blocks,), the rest for the input itself. What bfloat16
    takes from a scale is made good on average.
    """
    rows, columns = matrix.shape
    blocks = matrix.codes.reshape(rows, -1, BLOCK_SIZE)
    flipped = matrix.scales < 0
    codes = np.where(flipped[..., None], np.uint8(15) - blocks, blocks).astype(np.int8) - np.int8(_MIDDLE)
    zeros = np.float32(_MIDDLE) if matrix.zeros is None else matrix.zeros.astype(np.float32)
    zeros = np.where(flipped, 15 - zeros, zeros)
    wanted = np.abs(matrix.scales)
    scales = np.maximum(_bfloat16(wanted * conditioned), _SMALLEST_SCALE)
    offsets = wanted * (_MIDDLE - zeros) + (wanted - scales / conditioned) * codes.mean(axis=2, dtype=np.float32)
    if matrix.residual is not None:
        offsets = offsets + matrix.residual
    return codes.reshape(rows, columns), scales, offsets.astype(np.float32)


def _to_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """8-bit codes (N, K) and one scale a row."""
    scales = np.maximum(np.abs(weights).max(axis=1) / np.float32(127), _SMALLEST_SCALE)
    return np.rint(weights / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rounded: NDArray[np.float32] = torch.from_numpy(values).bfloat16().float().numpy()
    return rounded
