"""Linear layers in the forms that ExecuTorch's XNNPACK delegate supports: 4-bit blocks or 8-bit rows, 8-bit inputs.

XNNPACK rounds every token's input to 8 bits. Beside float32, it has two kinds of weights: 4-bit blocks with a bfloat16
scale and no zero point, and 8-bit rows with one scale per row. We add a 4-bit block's offset as a separate product
with the block sums of the input: scale * (code - 8) * x + offset * sum(x). These sums are not rounded. An offset is
several steps of the block's scale, so an 8-bit sum would cause most of the total error (dNLL 0.21 instead of 0.01).

Quantization is written out as operations that the delegate's partitioner recognizes. So torch runs what the device
runs, and a group of matrices rounds its common input once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import nn
from torch.nn.functional import linear

from export.model.quantized_matrix import BLOCK_SIZE, QuantizedMatrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from export.model.quantized_matrix import Matrix

_MIDDLE = 8
_SMALLEST_SCALE = np.float32(2.0**-24)


@dataclass(frozen=True, eq=False, slots=True)
class Conditioning:
    """How an input is prepared for 8-bit rounding per token, without changing the product.

    Attributes:
        scales: (K,) float32 above 0, equal within a block: divides the input and multiplies the weights.
        precise: columns of the input that are not rounded.
        common: other inputs of this width have the same precise columns, so the selection matrix is stored once.
    """

    scales: NDArray[np.float32]
    precise: NDArray[np.int64]
    common: bool = False


class JoinedLinear(nn.Module):
    """Maps x (1, S, K) float32 to x @ concat(matrices).T + concat(biases), (1, S, sum of N_i).

    The input is rounded once. One product selects its unrounded parts (block sums and precise columns), and another
    multiplies them by their weights, because on a device the number of operations costs more than their size.
    """

    inverse: torch.Tensor | None

    def __init__(self, matrices: Sequence[Matrix], biases: Sequence[NDArray[np.float32]] = ()) -> None:
        """Store the matrices.

        Args:
            matrices: each (N_i, K); K is a multiple of 32 if quantized.
            biases: each (N_i,); empty if there are none.
        """
        super().__init__()
        self._matrices, self._biases = tuple(matrices), tuple(biases)
        columns = matrices[0].shape[1]
        self.condition(Conditioning(np.ones(columns, np.float32), np.empty(0, np.int64)))

    @property
    def rounds(self) -> bool:
        """Whether any of the matrices takes a rounded input."""
        return any(isinstance(matrix, QuantizedMatrix) for matrix in self._matrices)

    def condition(self, conditioning: Conditioning) -> None:
        """Rebuild the weights for an input that is conditioned before it is rounded."""
        scales, precise = conditioning.scales, conditioning.precise if self.rounds else conditioning.precise[:0]
        offsets = any(_offsets(matrix, scales).any() for matrix in self._matrices)
        biases = self._biases or [np.zeros(0, np.float32)] * len(self._matrices)
        runs = groupby(zip(self._matrices, biases, strict=True), lambda pair: _kind(pair[0]))
        parts = []
        for kind, run in runs:
            matrices, own_biases = zip(*run, strict=True)
            beside = [_beside(matrix, scales, precise, offsets) for matrix in matrices]
            parts.append(_Part(kind.of(matrices, scales), beside, own_biases))
        self.parts = nn.ModuleList(parts)
        inverse = 1 / scales
        inverse[precise] = 0
        plain = bool((inverse == 1).all())
        self.register_buffer("inverse", None if plain or not self.rounds else torch.from_numpy(inverse))
        # The file stores equal constants only once.
        picked = [np.kron(np.eye(len(scales) // BLOCK_SIZE), np.ones((1, BLOCK_SIZE)))] * offsets
        picked += [np.eye(len(scales))[precise]] * bool(len(precise))
        picked = [np.concatenate(picked)] if picked and conditioning.common else picked
        self.picks = nn.ParameterList(_frozen(rows.astype(np.float32)) for rows in picked)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the product; see the class."""
        rounded, picked = x, None
        if self.rounds:
            rounded = _rounded(x if self.inverse is None else x * self.inverse)
        if len(self.picks):
            found = [linear(x, rows) for rows in self.picks]
            picked = found[0] if len(found) == 1 else torch.cat(found, -1)
        outputs = [part(x, rounded, picked) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def embedding_module(matrix: Matrix) -> nn.Module:
    """Make a module that looks up token ids (1, S) int64 in (vocabulary, hidden) and returns (1, S, hidden) float32."""
    if not isinstance(matrix, QuantizedMatrix):
        return nn.Embedding.from_pretrained(torch.from_numpy(matrix))
    return _Embedding(matrix)


def head_module(matrix: Matrix) -> nn.Module:
    """Make a module that maps hidden states (1, R, hidden) float32 to logits (1, R, vocabulary)."""
    return JoinedLinear([matrix])


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Round each token's values to 8 bits and back, as the delegate does."""
    ops = torch.ops.quantized_decomposed
    scale, zero = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = ops.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    rounded: torch.Tensor = ops.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)
    return rounded


class _Part(nn.Module):
    """Adjacent matrices of one kind, with their weights for the unrounded inputs, (N_i, picked), and biases (N_i,)."""

    def __init__(
        self, weight: nn.Module, beside: Sequence[NDArray[np.float32]], biases: Sequence[NDArray[np.float32]]
    ) -> None:
        super().__init__()
        self.weight = weight
        joined, bias = np.concatenate(beside), np.concatenate(biases)
        self.register_buffer("beside", torch.from_numpy(joined) if joined.shape[1] else None)
        self.register_buffer("bias", torch.from_numpy(bias) if len(bias) else None)

    def forward(self, x: torch.Tensor, rounded: torch.Tensor, picked: torch.Tensor | None) -> torch.Tensor:
        output = linear(rounded if self.weight.rounds else x, self.weight(), self.bias)
        return output if self.beside is None else output + linear(picked, self.beside)


class _Blocks(nn.Module):
    """4-bit blocks: codes (N, K) int8 from -8 to 7, scales (N, K // 32) that bfloat16 represents exactly."""

    rounds = True

    def __init__(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("zeros", torch.zeros(scales.shape, dtype=torch.int8))

    @classmethod
    def of(cls, matrices: Sequence[QuantizedMatrix], scales: NDArray[np.float32]) -> _Blocks:
        blocks = [_symmetric_blocks(matrix, scales) for matrix in matrices]
        return cls(np.concatenate([b.codes for b in blocks]), np.concatenate([b.scales for b in blocks]))

    def forward(self) -> torch.Tensor:
        weight: torch.Tensor = torch.ops.quantized_decomposed.dequantize_per_channel_group(
            self.codes, self.scales, self.zeros, -8, 7, torch.int8, BLOCK_SIZE, torch.float32
        )
        return weight


class _Rows(nn.Module):
    """8-bit rows: codes (N, K) int8, scales (N,) float32."""

    rounds = True

    def __init__(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer("zeros", torch.zeros(scales.shape, dtype=torch.int64))

    @classmethod
    def of(cls, matrices: Sequence[QuantizedMatrix], scales: NDArray[np.float32]) -> _Rows:
        return cls(*_to_rows(np.concatenate([matrix.dequantize() for matrix in matrices]) * scales))

    def forward(self) -> torch.Tensor:
        weight: torch.Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8
        )
        return weight


class _Dense(nn.Module):
    rounds = False

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(matrix))

    @classmethod
    def of(cls, matrices: Sequence[NDArray[np.float32]], _: NDArray[np.float32]) -> _Dense:
        return cls(matrices[0] if len(matrices) == 1 else np.concatenate(matrices))

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


def _kind(matrix: Matrix) -> type[_Blocks | _Rows | _Dense]:
    if not isinstance(matrix, QuantizedMatrix):
        return _Dense
    return _Rows if matrix.bits == 8 else _Blocks


def _beside(
    matrix: Matrix, scales: NDArray[np.float32], precise: NDArray[np.int64], offsets: bool
) -> NDArray[np.float32]:
    """Build the weights for the block sums (if `offsets`) and the precise columns: (N, blocks + columns)."""
    if not isinstance(matrix, QuantizedMatrix):
        return np.zeros((len(matrix), 0), np.float32)
    columns = matrix.dequantize()[:, precise]
    if not offsets:
        return columns
    own = _offsets(matrix, scales)
    # The block sums already apply the offsets to the precise columns.
    return np.concatenate((own, columns - own[:, precise // BLOCK_SIZE]), 1)


def _offsets(matrix: Matrix, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a matrix's offsets (N, K // 32), or zeros if it has none."""
    if isinstance(matrix, QuantizedMatrix) and matrix.bits == 4:
        return _symmetric_blocks(matrix, scales).offsets
    rows, columns = matrix.shape
    return np.zeros((rows, columns // BLOCK_SIZE), np.float32)


class _SymmetricBlocks(NamedTuple):
    """Codes (N, K) int8 from -8 to 7, positive bfloat16 scales and offsets, both (N, K // 32) float32."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32]


def _symmetric_blocks(matrix: QuantizedMatrix, conditioned: NDArray[np.float32]) -> _SymmetricBlocks:
    """Convert a matrix to symmetric blocks, and compute the offset that every weight of a block still lacks.

    Codes and scales apply to the input divided by `conditioned` (K,), the offsets to the input itself. They compensate
    on average for rounding the scales to bfloat16.
    """
    conditioned = conditioned[::BLOCK_SIZE]
    rows, columns = matrix.shape
    blocks = matrix.codes.reshape(rows, -1, BLOCK_SIZE)
    flipped = matrix.scales < 0
    codes = np.where(flipped[..., None], np.uint8(15) - blocks, blocks).astype(np.int8) - np.int8(_MIDDLE)
    zeros = np.float32(_MIDDLE) if matrix.zeros is None else matrix.zeros.astype(np.float32)
    zeros = np.where(flipped, 15 - zeros, zeros)
    wanted = np.abs(matrix.scales)
    scales = np.maximum(_bfloat16(wanted * conditioned), _SMALLEST_SCALE)
    offsets = wanted * (_MIDDLE - zeros) + (wanted - scales / conditioned) * codes.mean(axis=2, dtype=np.float32)
    rest = matrix.rest()
    if rest is not None:
        offsets = offsets + rest
    return _SymmetricBlocks(codes.reshape(rows, columns), scales, offsets.astype(np.float32))


def _to_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize to 8-bit codes (N, K) with one scale per row."""
    scales = np.maximum(np.abs(weights).max(axis=1) / np.float32(127), _SMALLEST_SCALE)
    return np.rint(weights / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rounded: NDArray[np.float32] = torch.from_numpy(values).bfloat16().float().numpy()
    return rounded


def _frozen(values: NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values), requires_grad=False)
