"""Quantized Hugging Face checkpoints: weights equal those that the format's definition gives, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_runtime.bundle.reader import open_bundle
from export.errors import SourceError, UnsupportedModelError, UnsupportedQuantizationError
from export.executorch.export import export_executorch
from export.model.hf_source import HFSource
from export.model.packed.floats import bitsandbytes_4bit
from export.onnx.export import export_onnx
from tests.support.tiny_models import decoder_of, make_model, random_ids, torch_logits

LAYER = "model.layers.0.mlp.down_proj"
WIDE = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True}


def words(values, bits):
    """Pack (rows, n) integers into (rows, n * bits / 32) int32, lowest bits first, one value after the other."""
    values = values.astype(np.uint64).reshape(len(values), -1, 32 // bits)
    packed = sum(values[..., place] << np.uint64(bits * place) for place in range(32 // bits))
    return torch.from_numpy(np.ascontiguousarray(packed.astype(np.uint32)).view(np.int32))


def quantized(weights, bits, size, seed):
    """Codes (N, K), scales and zero points (N, groups) of any quantizer, and what they stand for."""
    rng = np.random.default_rng(seed)
    rows, columns = weights.shape
    groups = columns // size
    codes = rng.integers(0, 2**bits, (rows, columns))
    zeros = rng.integers(1, 2**bits - 1, (rows, groups))
    scales = rng.uniform(0.01, 0.02, (rows, groups)).astype(np.float16) * np.float16(16 / 2**bits)
    wide = scales.astype(np.float32).repeat(size, 1)
    return codes, scales, zeros, wide * (codes - zeros.repeat(size, 1)).astype(np.float32)


def gptq_parts(codes, scales, zeros, bits, v2=False):
    return {
        "qweight": words(codes, bits).T.contiguous(),
        "qzeros": words((zeros if v2 else zeros - 1).T, bits).contiguous(),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
        "g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // (codes.shape[1] // scales.shape[1]),
    }


def awq_parts(codes, scales, zeros):
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map: place i of a word holds column order[i]

    def pack(values):
        return words(values.reshape(len(values), -1, 8)[..., order].reshape(values.shape), 4)

    return {
        "qweight": pack(codes.T),
        "qzeros": pack(zeros.T),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
    }


def compressed_parts(codes, scales, zeros, bits, symmetric=False):
    parts = {
        "weight_packed": words(codes, bits),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(codes.shape),
    }
    return parts if symmetric else parts | {"weight_zero_point": words(zeros.T, bits).T.contiguous()}


def pack_model(directory, settings, parts_of, dense_of=None):
    """Replace each projection of a tiny model by its packed parts; save the dense equal beside it."""
    model = make_model(directory / "packed", **WIDE)
    make_model(directory / "dense", **WIDE)
    tensors, dense = load_file(model / "model.safetensors"), {}
    for seed, name in enumerate(sorted(tensors)):
        if name.endswith("_proj.weight"):
            base = name.removesuffix(".weight")
            weights = tensors.pop(name).numpy()
            parts, dense[name] = parts_of(weights, seed)
            tensors |= {f"{base}.{part}": value for part, value in parts.items()}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    plain = load_file(directory / "dense/model.safetensors")
    save_file(
        {name: torch.from_numpy(dense[name]) if name in dense else value for name, value in plain.items()},
        directory / "dense/model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return model, directory / "dense", dense


def of(bits, size, parts_of, **options):
    def make(weights, seed):
        codes, scales, zeros, dense = quantized(weights, bits, size, seed)
        if options.get("symmetric"):
            zeros = np.full_like(zeros, 2 ** (bits - 1))
            dense = scales.astype(np.float32).repeat(size, 1) * (codes - zeros.repeat(size, 1)).astype(np.float32)
        return parts_of(codes, scales, zeros, bits, **options), dense

    return make


def compressed_settings(bits, size, symmetric=False):
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": size, "symmetric": symmetric}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
EXACT = {
    "gptq": (GPTQ, of(4, 32, gptq_parts)),
    "gptq, 128": (GPTQ | {"group_size": 128}, of(4, 128, gptq_parts)),
    "gptq, 8 bits": (GPTQ | {"bits": 8, "group_size": 64}, of(8, 64, gptq_parts)),
    "gptq, 2 bits": (GPTQ | {"bits": 2}, of(2, 32, gptq_parts)),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, of(4, 32, gptq_parts, v2=True)),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
        of(4, 64, lambda codes, scales, zeros, _: awq_parts(codes, scales, zeros)),
    ),
    "compressed-tensors": (compressed_settings(4, 32), of(4, 32, compressed_parts)),
    "compressed-tensors, symmetric": (
        compressed_settings(4, 128, symmetric=True),
        of(4, 128, compressed_parts, symmetric=True),
    ),
    "compressed-tensors, 8 bits": (compressed_settings(8, 64), of(8, 64, compressed_parts)),
}


@pytest.mark.parametrize("name", EXACT)
def test_packed_matrices_are_carried_over_exactly(name, tmp_path, monkeypatch):
    monkeypatch.setattr("export.onnx.linear.ACCURACY_LEVEL", 1)  # inputs are not rounded: this compares the weights
    model, plain, dense = pack_model(tmp_path, *EXACT[name])
    source = HFSource(model)
    for matrix, expected in dense.items():
        np.testing.assert_array_equal(source.read(matrix), expected)
        blocks = source.blocks(matrix)
        np.testing.assert_array_equal(blocks.dequantize(), expected)
    assert set(source.names()) == set(HFSource(plain).names())
    assert source.provenance().parameters == HFSource(plain).provenance().parameters
    export_onnx(model, tmp_path / "bundle")
    ids = random_ids(30)
    expected = torch_logits(plain, ids)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=30)
    assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 2e-5
    quantization = open_bundle(tmp_path / "bundle").manifest.decoder.quantization
    assert quantization.scheme == "keep"
    assert name.split(",")[0].split()[0].lower() in quantization.description.lower()


def test_compressed_tensors_own_library_reads_the_same(tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    model, _, dense = pack_model(tmp_path, *EXACT["compressed-tensors"])
    args = QuantizationArgs(num_bits=4, strategy="group", group_size=32, symmetric=False)
    parts = {
        name.removeprefix(f"{LAYER}."): value
        for name, value in load_file(model / "model.safetensors").items()
        if name.startswith(LAYER)
    }
    parts["weight_scale"] = parts["weight_scale"].float()
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    theirs = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    np.testing.assert_array_equal(theirs.numpy(), dense[f"{LAYER}.weight"])


def test_columns_in_act_order_are_dequantized_but_not_kept(tmp_path):
    def make(weights, seed):
        codes, scales, zeros, _ = quantized(weights, 4, 32, seed)
        parts = gptq_parts(codes, scales, zeros, 4)
        order = np.random.default_rng(seed).permutation(codes.shape[1]) // 32
        dense = scales.astype(np.float32)[:, order] * (codes - zeros[:, order]).astype(np.float32)
        return parts | {"g_idx": torch.from_numpy(order.astype(np.int32))}, dense

    model, _, dense = pack_model(tmp_path, GPTQ | {"desc_act": True}, make)
    np.testing.assert_array_equal(HFSource(model).read(f"{LAYER}.weight"), dense[f"{LAYER}.weight"])
    with pytest.raises(UnsupportedQuantizationError, match=r"act-order.*`quantize` int8"):
        export_onnx(model, tmp_path / "bundle", "keep")


def test_zero_points_that_libraries_read_in_two_ways_are_refused(tmp_path):
    def make(weights, seed):
        codes, scales, zeros, dense = quantized(weights, 4, 32, seed)
        return gptq_parts(codes, scales, np.full_like(zeros, 16), 4), dense

    model, _, _ = pack_model(tmp_path, GPTQ, make)
    with pytest.raises(SourceError, match=r"zero point of 16.*gptq_v2"):
        HFSource(model).read(f"{LAYER}.weight")


def nf4_parts(weights, seed):
    """Blocks of 64, magnitudes in 8 bits of another table, as QLoRA's appendix defines it."""
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
    indices = rng.integers(0, 16, weights.size)
    largest = rng.integers(0, 256, weights.size // 64).astype(np.uint8)
    outer = rng.uniform(0.1, 0.2, -(-len(largest) // 256)).astype(np.float32)
    magnitudes = table[largest] * outer.repeat(256)[: len(largest)] + np.float32(0.25)
    dense = (levels[indices] * magnitudes.repeat(64)).reshape(weights.shape)
    state = {"quant_type": "nf4", "blocksize": 64, "nested_blocksize": 256, "dtype": "float16"}
    state |= {"shape": list(weights.shape), "nested_dtype": "float32", "nested_offset": 0.25}
    parts = {
        "weight": (indices[0::2] << 4 | indices[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": levels,
        "weight.nested_absmax": outer,
        "weight.nested_quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8).copy(),
    }
    return {name: torch.from_numpy(value) for name, value in parts.items()}, dense


def int8_parts(weights, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, weights.shape).astype(np.int8)
    largest = rng.uniform(0.2, 0.4, len(codes)).astype(np.float32)
    dense = codes.astype(np.float32) * (largest * np.float32(1 / 127))[:, None]
    return {"weight": torch.from_numpy(codes), "SCB": torch.from_numpy(largest)}, dense


def fp8_parts(weights, seed):
    values = torch.from_numpy(weights * 100).to(torch.float8_e4m3fn)
    rows, columns = (-(-size // 96) for size in weights.shape)
    scales = torch.from_numpy(np.random.default_rng(seed).uniform(0.005, 0.02, (rows, columns)).astype(np.float32))
    wide = scales.repeat_interleave(96, 0).repeat_interleave(96, 1)[: weights.shape[0], : weights.shape[1]]
    return {"weight": values, "weight_scale_inv": scales}, (values.float() * wide).numpy()


DEQUANTIZED = {
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, nf4_parts),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8_parts),
    "8-bit floats": ({"quant_method": "fp8", "weight_block_size": [96, 96], "fmt": "e4m3"}, fp8_parts),
}


@pytest.mark.parametrize("name", DEQUANTIZED)
def test_other_forms_are_dequantized_and_the_bundle_says_so(name, tmp_path):
    model, plain, dense = pack_model(tmp_path, *DEQUANTIZED[name])
    source = HFSource(model)
    for matrix, expected in dense.items():
        np.testing.assert_array_equal(source.read(matrix), expected)
        assert source.blocks(matrix) is None
    assert source.provenance().parameters == HFSource(plain).provenance().parameters
    export_onnx(model, tmp_path / "bundle", "fp32")
    ids = random_ids(20)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=20)
    np.testing.assert_allclose(found, torch_logits(plain, ids), atol=5e-4)
    assert (
        f"dequantized weights: {source.quantization()}"
        in open_bundle(tmp_path / "bundle").manifest.decoder.quantization.description
    )
    with pytest.raises(UnsupportedQuantizationError, match=f"{name}.*`quantize` int8"):
        export_onnx(model, tmp_path / "kept", "keep")


def test_bitsandbytes_own_library_reads_the_same():
    functional = pytest.importorskip("bitsandbytes.functional")
    weights = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (64, 256)).astype(np.float32))
    packed, state = functional.quantize_4bit(weights, compress_statistics=True, quant_type="nf4")
    parts = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    found = bitsandbytes_4bit(lambda part: parts[part].numpy() if part in parts else None, "a matrix")
    theirs = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(found, theirs, rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "hqq"}, "'hqq'; supported are awq, bitsandbytes, compressed-tensors, fp8, gptq"),
        ({}, ""),
        ({"bits": 4}, "'none given'"),
        (GPTQ | {"bits": 3}, "to 3 bits"),
        (GPTQ | {"checkpoint_format": "marlin"}, "'marlin'"),
        (GPTQ | {"dynamic": {"-:.*down.*": {}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv'"),
        (compressed_settings(4, 32) | {"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        (compressed_settings(4, 32) | {"config_groups": {}}, "0 groups"),
        ({"quant_method": "bitsandbytes"}, "neither"),
    ],
)
def test_forms_that_can_not_be_read_are_refused_by_name(settings, says, tmp_path):
    model = make_model(tmp_path / "model", **WIDE)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    if not says:  # no settings: the model is not quantized
        assert HFSource(model).quantization() == "not quantized"
        return
    with pytest.raises(UnsupportedModelError, match=says):
        export_onnx(model, tmp_path / "bundle")


def test_executorch_names_what_to_do_with_packed_matrices(tmp_path):
    model, _, _ = pack_model(tmp_path, *EXACT["gptq"])
    with pytest.raises(UnsupportedQuantizationError, match=r"ExecuTorch.*`quantize` int8"):
        export_executorch(model, tmp_path / "bundle", "keep")
