"""Converts GGUF's quantized blocks to our own without rounding again.

The layouts are those of `ggml-quants.c`; the oracle of the tests is the gguf package's `dequantize`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from export.model.quantized_matrix import QuantizedMatrix, Source, TwoLevel, centered_zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
"""The levels of IQ4_NL and IQ4_XS."""


def exact_blocks(data: NDArray[np.uint8], kind: Kind) -> QuantizedMatrix:
    """Convert rows of GGUF blocks.

    Every kind is d * sc * (q - z) or d * sc * q - dmin * m, with float16 d and dmin, small integers sc and m for each
    block of 16 or 32 weights, and q of 2 to 8 bits. Codes above 4 bits become 8-bit codes.

    Args:
        data: (N, bytes per row) uint8.
        kind: one of `EXACT`.

    Raises:
        KeyError: the kind is not one of `EXACT`.
    """
    convert = _CONVERTERS[kind]
    rows = data.shape[0]
    return convert(np.ascontiguousarray(data).reshape(rows, -1, GGML_QUANT_SIZES[kind][1]))


def _q4_0(blocks: Bytes) -> QuantizedMatrix:
    return _symmetric(4, 32, _nibbles(blocks[..., 2:]), TwoLevel(_halves(blocks[..., 0:2])))


def _q4_1(blocks: Bytes) -> QuantizedMatrix:
    d, m = _halves(blocks[..., 0:2]), _halves(blocks[..., 2:4])
    return _with_minima(4, 32, _nibbles(blocks[..., 4:]), TwoLevel(d), TwoLevel(-m))


def _q5_0(blocks: Bytes) -> QuantizedMatrix:
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return _symmetric(8, 32, codes, TwoLevel(_halves(blocks[..., 0:2])), zero=16, code_bits=6)


def _q5_1(blocks: Bytes) -> QuantizedMatrix:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    d, m = _halves(blocks[..., 0:2]), _halves(blocks[..., 2:4])
    return _with_minima(8, 32, codes, TwoLevel(d), TwoLevel(-m), code_bits=6)


def _q8_0(blocks: Bytes) -> QuantizedMatrix:
    # Signed to unsigned: flipping the sign bit adds 128.
    return _symmetric(8, 32, blocks[..., 2:] ^ np.uint8(0x80), TwoLevel(_halves(blocks[..., 0:2])))


def _q2_k(blocks: Bytes) -> QuantizedMatrix:
    steps = blocks[..., 0:16]
    codes = _planes(blocks[..., 16:80], 32, (0, 2, 4, 6), 3)
    d, dmin = _halves(blocks[..., 80:82]), _halves(blocks[..., 82:84])
    scales, minima = TwoLevel(d, _flat(steps & 15)), TwoLevel(dmin, _flat(steps >> 4))
    return _with_minima(4, 16, codes, scales, minima, code_bits=2)


def _q3_k(blocks: Bytes) -> QuantizedMatrix:
    high = _planes(blocks[..., 0:32], 32, range(8), 1)
    codes = _planes(blocks[..., 32:96], 32, (0, 2, 4, 6), 3) | (high << np.uint8(2))
    packed = blocks[..., 96:108]
    low = _planes(packed[..., 0:8], 8, (0, 4), 15)
    steps = (low | (_planes(packed[..., 8:12], 4, (0, 2, 4, 6), 3) << 4)).astype(np.int8) - np.int8(32)
    scales = TwoLevel(_halves(blocks[..., 108:110]), _flat(steps))
    return _symmetric(4, 16, codes, scales, zero=4, code_bits=3)


def _q4_k(blocks: Bytes) -> QuantizedMatrix:
    scales, minima = _k_scales(blocks)
    return _with_minima(4, 32, _planes(blocks[..., 16:144], 32, (0, 4), 15), scales, minima)


def _q5_k(blocks: Bytes) -> QuantizedMatrix:
    scales, minima = _k_scales(blocks)
    codes = _planes(blocks[..., 48:176], 32, (0, 4), 15) | (_planes(blocks[..., 16:48], 32, range(8), 1) << np.uint8(4))
    return _with_minima(8, 32, codes, scales, minima, code_bits=6)


def _q6_k(blocks: Bytes) -> QuantizedMatrix:
    codes = _planes(blocks[..., 0:128], 64, (0, 4), 15) | (
        _planes(blocks[..., 128:192], 32, (0, 2, 4, 6), 3) << np.uint8(4)
    )
    scales = TwoLevel(_halves(blocks[..., 208:210]), _flat(blocks[..., 192:208].view(np.int8)))
    return _symmetric(8, 16, codes, scales, zero=32, code_bits=6)


def _iq4_nl(blocks: Bytes) -> QuantizedMatrix:
    return _levels(_nibbles(blocks[..., 2:]), TwoLevel(_halves(blocks[..., 0:2])))


def _iq4_xs(blocks: Bytes) -> QuantizedMatrix:
    low = _planes(blocks[..., 4:8], 1, (0, 4), 15)
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2") >> (2 * np.arange(8, dtype=np.uint16)) & 3
    steps = (low | (high.astype(np.uint8) << 4)).astype(np.int8) - np.int8(32)
    scales = TwoLevel(_halves(blocks[..., 0:2]), _flat(steps))
    return _levels(_planes(blocks[..., 8:136], 16, (0, 4), 15), scales)


_CONVERTERS: Mapping[Kind, Callable[[Bytes], QuantizedMatrix]] = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q5_0: _q5_0,
    Kind.Q5_1: _q5_1,
    Kind.Q8_0: _q8_0,
    Kind.Q2_K: _q2_k,
    Kind.Q3_K: _q3_k,
    Kind.Q4_K: _q4_k,
    Kind.Q5_K: _q5_k,
    Kind.Q6_K: _q6_k,
    Kind.IQ4_NL: _iq4_nl,
    Kind.IQ4_XS: _iq4_xs,
}

EXACT = frozenset(_CONVERTERS)
"""Kinds of blocks that `exact_blocks` supports."""

# What a bundle takes for each weight with narrow codes, and how many bits more with wide ones.
_STORED_BITS = {
    Kind.Q4_0: (4.5, 0),
    Kind.Q4_1: (5.25, 0),
    Kind.Q5_0: (6.5, 2),
    Kind.Q5_1: (7.25, 2),
    Kind.Q8_0: (8.5, 0),
    Kind.Q2_K: (3.125, 2),
    Kind.Q3_K: (3.5625, 1),
    Kind.Q4_K: (4.875, 0),
    Kind.Q5_K: (6.875, 2),
    Kind.Q6_K: (6.5625, 2),
    Kind.IQ4_NL: (4.5, 4),
    Kind.IQ4_XS: (4.3125, 4),
}
_LARGEST = 1.24
"""Size of a bundle's weights to the file's, up to which codes are stored wide; with the tokenizer it is below 1.25."""


def wide_tensors(tensors: Mapping[str, tuple[Kind, int]]) -> frozenset[str]:
    """Choose the tensors whose codes are stored as the product wants them, as far as there is room.

    Wide codes load several times as fast as narrow ones, and take less memory meanwhile.

    Args:
        tensors: kind and number of weights, by name.
    """
    room = 0.0
    for kind, count in tensors.values():
        own = GGML_QUANT_SIZES[kind][1] * 8 / GGML_QUANT_SIZES[kind][0]
        room += count * (_LARGEST * own - _STORED_BITS.get(kind, (own, 0))[0])
    chosen = set()
    for name, (kind, count) in tensors.items():
        more = count * _STORED_BITS.get(kind, (0, 0))[1]
        if more <= room:
            chosen.add(name)
            room -= more
    return frozenset(chosen)


def _symmetric(
    bits: int, block_size: int, codes: Bytes, scales: TwoLevel, *, zero: int | None = None, code_bits: int | None = None
) -> QuantizedMatrix:
    flat, values = _flat(codes), scales.values()
    zeros = None if zero is None else np.full(values.shape, zero, np.uint8)
    return QuantizedMatrix(bits, block_size, flat, values, zeros, source=Source(scales, None, code_bits or bits))


def _with_minima(
    bits: int, block_size: int, codes: Bytes, scales: TwoLevel, minima: TwoLevel, *, code_bits: int | None = None
) -> QuantizedMatrix:
    steps, low = scales.values(), minima.values()
    zeros = centered_zeros(steps, low, bits)
    source = Source(scales, minima, code_bits or bits)
    return QuantizedMatrix(bits, block_size, _flat(codes), steps, zeros, minima=low, source=source)


def _levels(indices: Bytes, scales: TwoLevel) -> QuantizedMatrix:
    levels = (_LEVELS + 128).astype(np.uint8)
    return QuantizedMatrix(8, 32, levels[_flat(indices)], scales.values(), source=Source(scales, None, 4, levels))


def _k_scales(blocks: Bytes) -> tuple[TwoLevel, TwoLevel]:
    """Read the scales and minima of Q4_K and Q5_K: two halves, then 6-bit steps of both in 12 bytes."""
    first, second, rest = (blocks[..., start : start + 4] for start in (4, 8, 12))
    steps = np.concatenate([first & 63, (rest & 15) | (first >> 2 & 48)], axis=-1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 2 & 48)], axis=-1)
    return TwoLevel(_halves(blocks[..., 0:2]), _flat(steps)), TwoLevel(_halves(blocks[..., 2:4]), _flat(minima))


def _nibbles(data: Bytes) -> Bytes:
    """Unpack (..., 16) bytes: first all low halves, then all high ones."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _planes(data: Bytes, run: int, shifts: Any, mask: int) -> Bytes:
    """Unpack codes: each run of bytes holds, at each shift, as many codes in a row."""
    shape = data.shape
    cut = data.reshape(*shape[:-1], -1, 1, run) >> np.array(list(shifts), np.uint8)[:, None]
    return (cut & np.uint8(mask)).reshape(*shape[:-1], -1)


def _fifth_bits(data: Bytes) -> Bytes:
    """Unpack (..., 4) bytes to 32 codes that are 0 or 16."""
    return np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little") << np.uint8(4)


def _halves(pairs: Bytes) -> NDArray[np.float16]:
    """Read (N, blocks, 2) bytes as (N, blocks) float16."""
    return np.ascontiguousarray(pairs).view("<f2")[..., 0]


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """Join the blocks of each row."""
    return np.ascontiguousarray(values).reshape(values.shape[0], -1)
