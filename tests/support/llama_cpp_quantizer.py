"""Makes mixed GGUF files from one of ours with llama.cpp's own quantizer, through a library that exports it."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

# What llama.cpp's recipes give most matrices, the more sensitive ones and the embedding (src/llama-quant.cpp).
RECIPES = {
    "Q4_K_M": (Kind.Q4_K, Kind.Q6_K, Kind.Q6_K),
    "Q5_K_M": (Kind.Q5_K, Kind.Q6_K, Kind.Q6_K),
    "Q6_K": (Kind.Q6_K, Kind.Q6_K, Kind.Q6_K),
    "Q3_K_M": (Kind.Q3_K, Kind.Q5_K, Kind.Q6_K),
    "IQ4_XS": (Kind.IQ4_XS, Kind.Q5_K, Kind.Q6_K),
}
# What it takes where a row is no multiple of 256.
_NARROW = {
    Kind.Q3_K: Kind.IQ4_NL,
    Kind.IQ4_XS: Kind.IQ4_NL,
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}


def quantize(weights: NDArray[np.float32], kind: Kind) -> NDArray[np.uint8]:
    """Quantize (N, K) weights as llama.cpp does; skips the test where no library of it is installed."""
    library = _library()
    size, length = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = weights.shape
    source, result = np.ascontiguousarray(weights, np.float32), np.empty((rows, columns // size * length), np.uint8)
    written = library.ggml_quantize_chunk(int(kind), source.ctypes.data, result.ctypes.data, 0, rows, columns, None)
    assert written == result.nbytes
    return result


def requantized(source: Path, out: Path, recipe: str) -> Path:
    """Write a copy of a GGUF file whose matrices are quantized by a recipe of llama.cpp."""
    most, sensitive, table = RECIPES[recipe]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    layers = int(reader.fields[f"{reader.fields['general.architecture'].contents()}.block_count"].contents())
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if weights.ndim < 2:
            writer.add_tensor(tensor.name, weights)
            continue
        kind = table if tensor.name in ("token_embd.weight", "output.weight") else most
        if "attn_v" in tensor.name or "ffn_down" in tensor.name:
            layer = int(tensor.name.split(".")[1])
            kind = sensitive if layer < layers // 8 or layer >= 7 * layers // 8 or layer % 3 == 2 else most
        if weights.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = _NARROW[kind]
        writer.add_tensor(tensor.name, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("*.so")) if spec else []
    if not found:
        pytest.skip("needs llama.cpp's quantizer: pip install --no-deps xllamacpp")
    library = ctypes.CDLL(str(found[0]))
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer]
    return library
