"""Blocks of every kind give, in the finished graph, the weights and the products of the gguf package's numbers."""

from __future__ import annotations

import gguf
import numpy as np
import onnxruntime as ort
import pytest
from gguf import GGMLQuantizationType as Kind
from onnx import TensorProto

from edge_runtime.bundle.reader import open_bundle
from export.hf_directory import write_hf_directory
from export.model.gguf.blocks import EXACT, exact_blocks
from export.onnx.export import export_onnx
from export.onnx.graph_writer import GraphWriter
from export.onnx.linear import embedding, head, linear
from tests.export.model.gguf.test_source import write_gguf
from tests.support.gguf_blocks import blocks_of
from tests.support.tiny_models import decoder_of, make_model, random_ids, torch_logits

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


def weights_of(kind: Kind, rows: int = 24, columns: int = 512, seed: int = 0):
    """Blocks of a kind as we carry them over, and the same weights as the gguf package reads them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.05, (rows, columns)).astype(np.float32) + rng.normal(0, 0.05, (rows, 1)).astype(
        np.float32
    )
    packed = blocks_of(weights, kind)
    return exact_blocks(packed, kind), gguf.quants.dequantize(packed, kind)


def run(directory, write, **inputs):
    """Write a graph with float32 "x" (S, 512), int64 "ids" and "rows", and run it."""
    with GraphWriter(directory) as graph:
        graph.input("x", TensorProto.FLOAT, ["S", 512])
        graph.input("ids", TensorProto.INT64, ["I"])
        graph.input("rows", TensorProto.INT64, ["R"])
        names = write(graph)
        for name in names:
            graph.output(name, ["A", "B"])
        graph.save("test")
    session = ort.InferenceSession(directory / graph.graph_name, providers=["CPUExecutionProvider"])
    nothing = {"x": np.zeros((1, 512), np.float32), "ids": np.zeros(1, np.int64), "rows": np.zeros(1, np.int64)}
    return session.run(None, nothing | inputs)


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_an_embedding_s_rows_are_the_files_weights_bit_for_bit(kind, tmp_path):
    matrix, expected = weights_of(kind)
    ids = np.array([3, 0, 23, 3])
    [found] = run(tmp_path, lambda graph: [embedding(graph, "ids", "table", matrix)], ids=ids)
    np.testing.assert_array_equal(found, expected[ids])


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_the_product_reads_the_files_weights_bit_for_bit(kind, tmp_path):
    # One input at a time: then nothing is summed, and 127 is not rounded.
    matrix, expected = weights_of(kind)
    x = np.zeros((64, 512), np.float32)
    columns = np.arange(64) * 8
    x[np.arange(64), columns] = 127

    def write(graph):
        return [linear(graph, "x", "own", [matrix], exact=True)]

    [found] = run(tmp_path, write, x=x)
    # Centered codes and the rest are two products, so a sum is rounded after each.
    np.testing.assert_allclose(found / 127, expected[:, columns].T, rtol=0, atol=np.abs(expected).max() * 3e-7)


@pytest.mark.parametrize("kind", sorted(EXACT))
@pytest.mark.parametrize("count", [1, 7])
def test_the_product_differs_only_by_the_rounding_of_its_inputs(kind, count, tmp_path):
    matrix, expected = weights_of(kind)
    x = np.random.default_rng(1).normal(0, 1, (count, 512)).astype(np.float32)
    bias = np.random.default_rng(2).normal(0, 1, 24).astype(np.float32)
    [found] = run(tmp_path, lambda graph: [linear(graph, "x", "own", [matrix], [bias])], x=x)
    # Each input is off by at most half of a 127th of the largest in its block; the sum's error is far smaller.
    step = np.abs(x.reshape(count, -1, 16)).max() / 127
    exact = x @ expected.T + bias
    assert np.abs(found - exact).max() < step * np.sqrt((expected**2).sum(axis=1)).max() * 1.5
    assert np.sqrt(((found - exact) ** 2).mean()) > 0


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q6_K, Kind.Q4_K, Kind.IQ4_NL, Kind.Q2_K, Kind.F16])
def test_a_tied_head_shares_the_embeddings_constants(kind, tmp_path):
    if kind == Kind.F16:
        expected = np.random.default_rng(0).normal(0, 0.1, (24, 512)).astype(np.float16).astype(np.float32)
        matrix = expected
    else:
        matrix, expected = weights_of(kind)
    x = np.random.default_rng(1).normal(0, 1, (5, 512)).astype(np.float32)

    def write(graph):
        found = embedding(graph, "ids", "table", matrix)
        head(graph, "x", "rows", "table", matrix, "logits")
        return [found, "logits"]

    ids, rows = np.array([5, 7]), np.array([4, 1])
    found, logits = run(tmp_path, write, x=x, ids=ids, rows=rows)
    np.testing.assert_array_equal(found, expected[ids])
    np.testing.assert_allclose(logits, x[rows] @ expected.T, atol=0.25)
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert size < 24 * 512 * 2.1
    none = run(tmp_path, write, x=x, ids=ids, rows=np.zeros(0, np.int64))[1]
    assert none.shape == (0, 24)


@pytest.mark.parametrize(
    "kinds",
    [
        (Kind.Q4_K, Kind.Q4_K, Kind.Q6_K),
        (Kind.Q5_0, Kind.Q5_0, Kind.Q8_0),
        (Kind.Q3_K, Kind.Q5_K, Kind.Q2_K),
        (Kind.IQ4_XS, Kind.IQ4_XS, Kind.Q5_1),
        (Kind.Q4_0, Kind.Q4_1, Kind.Q4_K),
    ],
)
def test_matrices_of_different_kinds_share_an_input(kinds, tmp_path):
    found = [weights_of(kind, 8 + 4 * place, seed=place) for place, kind in enumerate(kinds)]
    biases = [np.full(len(dense), place, np.float32) for place, (_, dense) in enumerate(found)]
    x = np.random.default_rng(1).normal(0, 1, (3, 512)).astype(np.float32)
    matrices = [matrix for matrix, _ in found]
    [product] = run(tmp_path, lambda graph: [linear(graph, "x", "own", matrices, biases, exact=True)], x=x)
    expected = x @ np.concatenate([dense for _, dense in found]).T + np.concatenate(biases)
    np.testing.assert_allclose(product, expected, atol=1e-4)


# Roughly what llama.cpp's recipes mix, in the order in which tensors are written.
MIXED = {
    "Q4_K_M": [Kind.Q4_K, Kind.Q4_K, Kind.Q6_K],
    "Q4_K_M of a narrow model": [Kind.Q5_0, Kind.Q8_0, Kind.Q4_K, Kind.Q6_K],
    "Q5_K_M": [Kind.Q5_K, Kind.Q6_K],
    "Q6_K": [Kind.Q6_K, Kind.Q8_0],
    "Q3_K_M": [Kind.Q3_K, Kind.Q5_K, Kind.Q4_K, Kind.IQ4_NL],
    "Q2_K": [Kind.Q2_K, Kind.Q3_K, Kind.Q6_K],
    "IQ4_XS": [Kind.IQ4_XS, Kind.Q5_K, Kind.IQ4_NL, Kind.BF16],
}


@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_file_computes_what_its_dequantized_weights_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr("export.onnx.linear.ACCURACY_LEVEL", 1)  # inputs are not rounded: this compares the weights
    tied = len(MIXED[name]) % 2 == 0
    model = make_model(tmp_path / "hf", model_type="llama", tie_word_embeddings=tied, **WIDE)
    path = write_gguf(model, tmp_path / "tiny.gguf", MIXED[name])
    export_onnx(path, tmp_path / "bundle")
    write_hf_directory(path, tmp_path / "dequantized")
    ids = random_ids(40)
    expected = torch_logits(tmp_path / "dequantized", ids)
    found = decoder_of(tmp_path / "bundle").extend(ids, rows=40)
    assert np.sqrt(((found - expected) ** 2).mean()) / expected.std() < 2e-5
    bundle = open_bundle(tmp_path / "bundle")
    size = sum(entry.size for entry in bundle.manifest.files if entry.role == "weights")
    assert size <= 1.25 * path.stat().st_size
    assert MIXED[name][0].name in bundle.manifest.decoder.quantization.description
