"""Writes the decoder graph of the Llama family, kind "shared_kv" of docs/bundle.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from export.model.lora_sites import lora_sites
from export.model.quantized_matrix import Matrix
from export.model.weights import EMBEDDING, FINAL_NORM, HEAD
from export.onnx.graph_writer import GraphWriter
from export.onnx.linear import add_lora, embedding, head, linear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from export.model.architecture import Architecture


def write_graph(
    architecture: Architecture,
    matrix: Callable[[str], Matrix],
    vector: Callable[[str], NDArray[np.float32]],
    directory: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Write `model.onnx` and `model.onnx.data`.

    Args:
        architecture: the decoder's shape; its `context_length` is the number of positions that the graph knows.
        matrix: a weight matrix by its Hugging Face name, in the form in which it is to be stored.
        vector: a norm's weight or a bias by its name.
        directory: where the files go.
        progress: called with (layers done, layers).
    """
    with GraphWriter(directory) as graph:
        _Decoder(graph, architecture, matrix, vector).write(progress)


class _Decoder:
    """One pass over the layers; values are (S, width) but around attention, which wants (1, S, width)."""

    def __init__(
        self,
        graph: GraphWriter,
        architecture: Architecture,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], NDArray[np.float32]],
    ) -> None:
        self.graph, self.a, self.matrix, self.vector = graph, architecture, matrix, vector
        self.sites = {site.name: site for site in lora_sites(architecture)}

    def write(self, progress: Callable[[int, int], None]) -> None:
        graph, a = self.graph, self.a
        graph.input("input_ids", TensorProto.INT64, [1, "S"])
        graph.input("seqlens_k", TensorProto.INT32, [1])
        graph.input("total_sequence_length", TensorProto.INT32, [1])
        graph.input("rows", TensorProto.INT64, ["R"])
        graph.output("logits", ["R", a.vocab])
        graph.constant("axis_0", np.array([0], np.int64))
        self._rotary_tables()

        ids = graph.node("Reshape", ["input_ids", graph.constant("flat", np.array([-1], np.int64))], "token_ids")
        table = self.matrix(EMBEDDING)
        x = embedding(graph, ids, "embedding", table)
        if a.embedding_scale != 1.0:
            scale = graph.constant("embedding_scale", np.array(a.embedding_scale, np.float32))
            x = graph.node("Mul", [x, scale], "embedding.scaled")
        skip: str | None = None
        for layer in range(a.layers):
            x, skip = self._layer(layer, x, skip)
            progress(layer + 1, a.layers)
        x, _ = self._norm(x, skip, FINAL_NORM, "final_norm")
        if a.tied_head:
            head(graph, x, "rows", "embedding", table, "logits")
        else:
            head(graph, x, "rows", "head", self.matrix(HEAD), "logits")
        graph.save(a.family)

    def _rotary_tables(self) -> None:
        """Cosines and sines, as arithmetic that onnxruntime folds when it loads: no bytes in the file."""
        graph, a = self.graph, self.a
        bounds = [
            graph.constant(f"position.{name}", np.array(value, np.float32))
            for name, value in (("start", 0), ("end", a.context_length), ("step", 1))
        ]
        positions = graph.node("Range", bounds, "positions")
        column = graph.node(
            "Unsqueeze", [positions, graph.constant("axis_1", np.array([1], np.int64))], "positions.column"
        )
        frequencies = graph.constant("rope.inverse_frequencies", np.array([a.rope.inverse_frequencies], np.float32))
        angles = graph.node("Mul", [column, frequencies], "rope.angles")
        # Attention's 1/sqrt(head_dim) is split between the rotated queries and the rotated keys: onnxruntime has its
        # fast product for a single query only where nothing is scaled afterwards.
        factor = graph.constant("rope.factor", np.array(a.rope.attention_factor * a.head_dim**-0.25, np.float32))
        for operator, name in (("Cos", "rope.cos"), ("Sin", "rope.sin")):
            graph.node("Mul", [graph.node(operator, [angles], f"{name}.plain"), factor], name)

    def _layer(self, layer: int, x: str, skip: str | None) -> tuple[str, str]:
        graph, a = self.graph, self.a
        source, here = f"model.layers.{layer}.", f"layers.{layer}."
        normed, skip = self._norm(x, skip, source + "input_layernorm.weight", here + "input_norm")
        qkv = self._project(layer, "qkv", normed, source + "self_attn.", a.qkv_bias)
        attended = self._attention(layer, qkv)
        x = self._project(layer, "o", attended, source + "self_attn.", a.o_bias)
        normed, skip = self._norm(x, skip, source + "post_attention_layernorm.weight", here + "post_norm")
        packed = self._project(layer, "gate_up", normed, source + "mlp.", a.mlp_bias)
        gate, up = graph.nodes("Split", [packed], [here + "gate", here + "up"], axis=-1, num_outputs=2)
        active = graph.node("Mul", [self._activation(gate, here + "activation"), up], here + "mlp")
        return self._project(layer, "down", active, source + "mlp.", a.mlp_bias), skip

    def _project(self, layer: int, site: str, x: str, source: str, bias: bool) -> str:
        """All projections of a site as one matrix, and the adapter's side path."""
        names = [name for name, _ in self.sites[site].projections]
        matrices = [self.matrix(source + name + ".weight") for name in names]
        biases = [self.vector(source + name + ".bias") for name in names] if bias else []
        prefix = f"layers.{layer}.{site}"
        width = self.sites[site].in_features
        # What int8 activations lose here, at the entrance, goes through all layers: a seventh of all they lose, for
        # half a percent of a decoding step.
        exact = layer == 0 and site == "qkv"
        base = linear(self.graph, x, f"{prefix}.base", matrices, biases, exact=exact)
        return add_lora(self.graph, x, base, prefix, width, sum(size for _, size in self.sites[site].projections))

    def _norm(self, x: str, skip: str | None, source: str, name: str) -> tuple[str, str]:
        """RMS norm of x + skip; returns (normed, x + skip)."""
        graph = self.graph
        weight = graph.constant(f"{name}.weight", self.vector(source) + np.float32(self.a.norm_offset))
        if skip is None:
            return graph.node("SimplifiedLayerNormalization", [x, weight], name, epsilon=self.a.norm_eps, axis=-1), x
        graph.nodes(
            "SkipSimplifiedLayerNormalization",
            [skip, x, weight],
            [name, "", "", f"{name}.sum"],
            epsilon=self.a.norm_eps,
        )
        return name, f"{name}.sum"

    def _attention(self, layer: int, qkv: str) -> str:
        """Causal attention over packed (S, q + k + v); appends to the shared KV buffers. Returns (S, q)."""
        graph, a = self.graph, self.a
        here = f"layers.{layer}."
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in past:
            graph.input(name, TensorProto.FLOAT, [1, a.kv_heads, "L", a.head_dim])
        for name in present:
            graph.output(name, [1, a.kv_heads, "L", a.head_dim])
        if a.head_norms:
            queries = self._normed_heads(layer, qkv)
        else:
            queries = [graph.node("Unsqueeze", [qkv, "axis_0"], here + "qkv.batched"), "", ""]
        graph.nodes(
            "GroupQueryAttention",
            [*queries, *past, "seqlens_k", "total_sequence_length", "rope.cos", "rope.sin"],
            [here + "attention.batched", *present],
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            do_rotary=1,
            scale=1.0,
        )
        return graph.node("Squeeze", [here + "attention.batched", "axis_0"], here + "attention")

    def _normed_heads(self, layer: int, qkv: str) -> list[str]:
        """Split packed projections and normalise every head of the queries and keys: three (1, S, width) values."""
        graph, a = self.graph, self.a
        here = f"layers.{layer}."
        sizes = graph.constant("qkv.sizes", np.array([a.query_width, a.kv_width, a.kv_width], np.int64))
        parts = graph.nodes("Split", [qkv, sizes], [here + part for part in ("q", "k", "v")], axis=1)
        heads = graph.constant("heads.shape", np.array([0, -1, a.head_dim], np.int64))
        values = []
        for part, width in (("q", a.query_width), ("k", a.kv_width)):
            split = graph.node("Reshape", [here + part, heads], f"{here}{part}.heads")
            weight = self.vector(f"model.layers.{layer}.self_attn.{part}_norm.weight") + np.float32(a.norm_offset)
            normed = graph.node(
                "SimplifiedLayerNormalization",
                [split, graph.constant(f"{here}{part}_norm.weight", weight)],
                f"{here}{part}.normed",
                epsilon=a.norm_eps,
                axis=-1,
            )
            whole = graph.constant(f"{part}.shape", np.array([1, -1, width], np.int64))
            values.append(graph.node("Reshape", [normed, whole], f"{here}{part}.batched"))
        return [*values, graph.node("Unsqueeze", [parts[2], "axis_0"], here + "v.batched")]

    def _activation(self, x: str, name: str) -> str:
        if self.a.activation == "silu":
            return self.graph.node("QuickGelu", [x], name, alpha=1.0)
        approximate = "tanh" if self.a.activation == "gelu_tanh" else "none"
        return self.graph.node("Gelu", [x], name, approximate=approximate)
