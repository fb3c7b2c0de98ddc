"""Writes our decoder graph, kind "shared_kv" of docs/bundle.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from export.model.lora_sites import lora_sites
from export.model.quantized_matrix import Matrix
from export.model.weights import EMBEDDING, FINAL_NORM, HEAD
from export.onnx.attention import Attention
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
        architecture: the decoder's shape; its `context_length` is the graph's number of positions.
        matrix: returns a weight matrix, by its Hugging Face name, in the form to be stored.
        vector: returns a norm's weight or a bias, by its name.
        directory: directory for the files.
        progress: called with (layers done, layers).
    """
    with GraphWriter(directory) as graph:
        _Decoder(graph, architecture, matrix, vector).write(progress)


class _Decoder:
    """Writes the layers in order; values have shape (S, width), but (1, S, width) around attention."""

    def __init__(
        self,
        graph: GraphWriter,
        architecture: Architecture,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], NDArray[np.float32]],
    ) -> None:
        self.graph, self.a, self.matrix, self.vector = graph, architecture, matrix, vector
        self.attention = Attention(graph, architecture, vector)
        self.sites = {site.name: site for site in lora_sites(architecture)}

    def write(self, progress: Callable[[int, int], None]) -> None:
        graph, a = self.graph, self.a
        graph.input("input_ids", TensorProto.INT64, [1, "S"])
        graph.input("seqlens_k", TensorProto.INT32, [1])
        graph.input("total_sequence_length", TensorProto.INT32, [1])
        graph.input("rows", TensorProto.INT64, ["R"])
        graph.output("logits", ["R", a.vocab])
        graph.constant("axis_0", np.array([0], np.int64))

        ids = graph.node("Reshape", ["input_ids", graph.constant("flat", np.array([-1], np.int64))], "token_ids")
        table = self.matrix(EMBEDDING)
        x = self._scaled(embedding(graph, ids, "embedding", table), a.embedding_scale, "embedding.scaled")
        skip: str | None = None
        for layer in range(a.layers):
            x, skip = self._layer(layer, x, skip)
            progress(layer + 1, a.layers)
        x, _ = self._norm(x, skip, FINAL_NORM, "final_norm")
        ends = a.logit_scale != 1.0 or a.logit_cap is not None
        logits = "logits.plain" if ends else "logits"
        if a.tied_head:
            head(graph, x, "rows", "embedding", table, logits)
        else:
            head(graph, x, "rows", "head", self.matrix(HEAD), logits)
        if ends:
            self._end(logits)
        graph.save(a.family)

    def _end(self, logits: str) -> None:
        """Scale the logits, then cap them softly: c * tanh(x / c)."""
        graph, a = self.graph, self.a
        if a.logit_cap is None:
            self._scaled(logits, a.logit_scale, "logits")
            return
        inner = self._scaled(logits, a.logit_scale / a.logit_cap, "logits.inner")
        cap = graph.constant("logits.cap", np.array(a.logit_cap, np.float32))
        graph.node("Mul", [graph.node("Tanh", [inner], "logits.tanh"), cap], "logits")

    def _scaled(self, x: str, factor: float, name: str) -> str:
        if factor == 1.0:
            return x
        scale = self.graph.constant(f"{name}.factor", np.array(factor, np.float32))
        return self.graph.node("Mul", [x, scale], name)

    def _layer(self, layer: int, x: str, skip: str | None) -> tuple[str, str]:
        graph, a = self.graph, self.a
        source, here = f"model.layers.{layer}.", f"layers.{layer}."
        normed, skip = self._entered(x, skip, source, a.norms.before_attention, here + "input_norm")
        qkv = self._project(layer, "qkv", normed, source + "self_attn.", a.qkv_bias)
        attended = self.attention.write(layer, qkv)
        x = self._project(layer, "o", attended, source + "self_attn.", a.o_bias)
        x = self._left(x, source, a.norms.after_attention, here + "attention_out")
        normed, skip = self._entered(x, skip, source, a.norms.before_mlp, here + "post_norm")
        packed = self._project(layer, "gate_up", normed, source + "mlp.", a.mlp_bias)
        gate, up = graph.nodes("Split", [packed], [here + "gate", here + "up"], axis=-1, num_outputs=2)
        active = graph.node("Mul", [self._activation(gate, here + "activation"), up], here + "mlp")
        x = self._project(layer, "down", active, source + "mlp.", a.mlp_bias)
        return self._left(x, source, a.norms.after_mlp, here + "mlp_out"), skip

    def _entered(self, x: str, skip: str | None, source: str, norm: str | None, name: str) -> tuple[str, str]:
        """Write the input of attention or MLP; returns (input, hidden states so far)."""
        if norm is not None:
            return self._norm(x, skip, f"{source}{norm}.weight", name)
        total = x if skip is None else self.graph.node("Add", [skip, x], name)
        return total, total

    def _left(self, x: str, source: str, norm: str | None, name: str) -> str:
        """Write what becomes of an output of attention or MLP before it is added."""
        if norm is not None:
            x, _ = self._norm(x, None, f"{source}{norm}.weight", f"{name}.norm")
        return self._scaled(x, self.a.residual_scale, f"{name}.scaled")

    def _project(self, layer: int, site: str, x: str, source: str, bias: bool) -> str:
        """Write all projections of a site as one matrix, with the adapter's side path."""
        names = [name for name, _ in self.sites[site].projections]
        matrices = [self.matrix(source + name + ".weight") for name in names]
        biases = [self.vector(source + name + ".bias") for name in names] if bias else []
        prefix = f"layers.{layer}.{site}"
        width = self.sites[site].in_features
        # An error in the first layer passes through all others. float32 activations here avoid a seventh of the total
        # loss from int8 activations, for half a percent of a decoding step.
        exact = layer == 0 and site == "qkv"
        base = linear(self.graph, x, f"{prefix}.base", matrices, biases, exact=exact)
        return add_lora(self.graph, x, base, prefix, width, sum(size for _, size in self.sites[site].projections))

    def _norm(self, x: str, skip: str | None, source: str, name: str) -> tuple[str, str]:
        """Write the norm of x + skip; `source` names its weight. Returns (normed, x + skip)."""
        graph, a = self.graph, self.a
        weights = [graph.constant(f"{name}.weight", self.vector(source) + np.float32(a.norm_offset))]
        rms = a.norm_kind == "rms"
        if not rms:
            bias = source.removesuffix("weight") + "bias"
            weights.append(graph.constant(f"{name}.bias", self.vector(bias)))
        if skip is None:
            operator = "SimplifiedLayerNormalization" if rms else "LayerNormalization"
            return graph.node(operator, [x, *weights], name, epsilon=a.norm_eps, axis=-1), x
        operator = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
        graph.nodes(operator, [skip, x, *weights], [name, "", "", f"{name}.sum"], epsilon=a.norm_eps)
        return name, f"{name}.sum"

    def _activation(self, x: str, name: str) -> str:
        if self.a.activation == "silu":
            return self.graph.node("QuickGelu", [x], name, alpha=1.0)
        approximate = "tanh" if self.a.activation == "gelu_tanh" else "none"
        return self.graph.node("Gelu", [x], name, approximate=approximate)
