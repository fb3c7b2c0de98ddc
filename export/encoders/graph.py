"""Writes the graph of a BERT-like text encoder, which maps token ids to the mean of the last hidden states, or one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from export.errors import UnsupportedModelError
from export.model.quantized_matrix import Matrix
from export.onnx.graph_writer import GraphWriter
from export.onnx.linear import embedding, linear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from export.encoders.sentence_files import Pooling


@dataclass(frozen=True, slots=True)
class LayerNames:
    """An architecture's names for a layer's weights: attention's q, k, v, output and norm, the MLP and its norm."""

    prefix: str
    query: str
    key: str
    value: str
    attended: str
    attention_norm: str
    up: str
    down: str
    norm: str


_BERT = LayerNames(
    "encoder.layer.",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT = LayerNames(
    "transformer.layer.",
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
ENCODER_FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
}
_PADDING_FIRST = ("roberta", "xlm-roberta", "camembert")  # their positions start after the padding id
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "relu": None}


@dataclass(frozen=True, slots=True)
class EncoderArchitecture:
    """An encoder's shape.

    Attributes:
        family: `model_type` of the configuration.
        names: names of the layers' weights.
        layers, heads, hidden: sizes.
        norm_eps: added to the variance in norms.
        activation: the MLP's activation, by its name in the configuration.
        first_position: the first token's row in the position table.
        positions: maximum length of a text in tokens.
    """

    family: str
    names: LayerNames
    layers: int
    heads: int
    hidden: int
    norm_eps: float
    activation: str
    first_position: int
    positions: int


def encoder_architecture(config: Mapping[str, Any], where: str) -> EncoderArchitecture:
    """Read an encoder's configuration.

    Args:
        config: a parsed `config.json`.
        where: its path, for error messages.

    Raises:
        UnsupportedModelError: the family is not supported, or the graph can't express a part of the model.
    """
    family = str(config.get("model_type"))
    if family not in ENCODER_FAMILIES:
        raise UnsupportedModelError(
            f"Encoders of type '{family}' can't be exported: {where}. Use one of: {', '.join(ENCODER_FAMILIES)}."
        )
    distilled = family == "distilbert"

    def size(name: str, distilled_name: str) -> int:
        value = config.get(distilled_name if distilled else name)
        if type(value) is not int or value < 1:
            raise UnsupportedModelError(f"The configuration has no '{distilled_name if distilled else name}': {where}.")
        return value

    activation = str(config.get("activation" if distilled else "hidden_act", "gelu"))
    if activation not in _ACTIVATIONS or config.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedModelError(
            f"The graph has no activation '{activation}' or no such positions: {where}. "
            f"It knows {', '.join(_ACTIVATIONS)} and absolute positions."
        )
    first = int(config.get("pad_token_id") or 0) + 1 if family in _PADDING_FIRST else 0
    return EncoderArchitecture(
        family,
        ENCODER_FAMILIES[family],
        size("num_hidden_layers", "n_layers"),
        size("num_attention_heads", "n_heads"),
        size("hidden_size", "dim"),
        1e-12 if distilled else float(config.get("layer_norm_eps", 1e-12)),
        activation,
        first,
        size("max_position_embeddings", "max_position_embeddings") - first,
    )


def write_encoder_graph(
    architecture: EncoderArchitecture,
    matrix: Callable[[str], Matrix],
    vector: Callable[[str], NDArray[np.float32]],
    directory: Path,
    *,
    token_types: bool = True,
    pooling: Pooling = "mean",
    head: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> None:
    """Write `model.onnx` and `model.onnx.data`.

    The inputs are `input_ids` and `attention_mask`, (n, length) int64, right-padded with mask 0. The output is
    `vectors` (n, hidden) float32, or `scores` (n,) if there is a head.

    Args:
        architecture: the encoder's shape.
        matrix: returns a weight matrix, by its name in transformers, in the form to be stored.
        vector: returns a norm's weight, a bias or a table that is not quantized.
        directory: directory for the files; it must exist.
        token_types: whether there is a table of token types; every token has the first type.
        pooling: what makes a vector of the hidden states.
        head: weight (1, hidden) and bias (1,) of a linear layer on the vectors.
    """
    with GraphWriter(directory) as graph:
        _Encoder(graph, architecture, matrix, vector).write(token_types, pooling, head)


class _Encoder:
    """Writes the layers in order; values have shape (n length, width), but (n, length, width) around attention."""

    def __init__(
        self,
        graph: GraphWriter,
        architecture: EncoderArchitecture,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], NDArray[np.float32]],
    ) -> None:
        self.graph, self.a, self.matrix, self.vector = graph, architecture, matrix, vector

    def write(
        self, token_types: bool, pooling: Pooling, head: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    ) -> None:
        graph = self.graph
        graph.input("input_ids", TensorProto.INT64, ["n", "length"])
        graph.input("attention_mask", TensorProto.INT64, ["n", "length"])
        graph.node("Cast", ["attention_mask"], "padding", to=TensorProto.INT32)
        self._shapes()
        x = self._embeddings(token_types)
        for layer in range(self.a.layers):
            x = self._layer(layer, x)
        pooled = "vectors" if head is None else "pooled"
        if pooling == "mean":
            self._mean(x, pooled)
        else:
            first = graph.constant("first", np.array(0, np.int64))
            graph.node("Gather", [self._batched(x), first], pooled, axis=1)
        if head is None:
            graph.output("vectors", ["n", self.a.hidden])
        else:
            weight, bias = (graph.constant(f"head.{i}", part) for i, part in enumerate(head))
            scored = graph.node("Gemm", [pooled, weight, bias], "scored", transB=1)
            graph.node("Squeeze", [scored, self._whole("axis_last", [-1])], "scores")
            graph.output("scores", ["n"])
        graph.save(self.a.family)

    def _whole(self, name: str, values: list[int]) -> str:
        return self.graph.constant(name, np.array(values, np.int64))

    def _shapes(self) -> None:
        graph = self.graph
        graph.node("Shape", ["input_ids"], "shape.ids")
        graph.node("Concat", ["shape.ids", self._whole("hidden", [self.a.hidden])], "shape.batched", axis=0)
        self._whole("shape.flat", [-1, self.a.hidden])

    def _batched(self, x: str) -> str:
        return self.graph.node("Reshape", [x, "shape.batched"], f"{x}.batched")

    def _flat(self, x: str) -> str:
        return self.graph.node("Reshape", [x, "shape.flat"], f"{x}.flat")

    def _embeddings(self, token_types: bool) -> str:
        graph, a = self.graph, self.a
        ids = graph.node("Reshape", ["input_ids", self._whole("flat", [-1])], "token_ids")
        words = embedding(graph, ids, "words", self.matrix("embeddings.word_embeddings.weight"))
        table = self.vector("embeddings.position_embeddings.weight")[a.first_position :]
        if token_types:
            table = table + self.vector("embeddings.token_type_embeddings.weight")[0]
        length = graph.node("Gather", ["shape.ids", self._whole("second", [1])], "length", axis=0)
        bounds = [self._whole("zero", [0]), length]
        positions = graph.node("Slice", [graph.constant("positions.table", table), *bounds], "positions")
        placed = graph.node("Add", [self._batched(words), positions], "embedded")
        scale, shift = self._norm_weights("embeddings.LayerNorm")
        normed = graph.node("LayerNormalization", [placed, scale, shift], "embedded.normed", epsilon=a.norm_eps)
        return self._flat(normed)

    def _layer(self, layer: int, x: str) -> str:
        graph, a, names = self.graph, self.a, self.a.names
        source, here = f"{names.prefix}{layer}.", f"layers.{layer}."
        parts = [source + name for name in (names.query, names.key, names.value)]
        qkv = linear(
            graph,
            x,
            here + "qkv",
            [self.matrix(f"{part}.weight") for part in parts],
            [self.vector(f"{part}.bias") for part in parts],
        )
        split = graph.nodes("Split", [qkv], [here + part for part in ("q", "k", "v")], axis=1, num_outputs=3)
        attended = graph.node(
            "MultiHeadAttention",
            [*(self._batched(part) for part in split), "", "padding"],
            here + "attention",
            num_heads=a.heads,
        )
        mixed = self._linear(self._flat(attended), here + "mixed", source + names.attended)
        x = self._add_norm(mixed, x, here + "attention_norm", source + names.attention_norm)
        wide = self._linear(x, here + "up", source + names.up)
        down = self._linear(self._activation(wide, here + "active"), here + "down", source + names.down)
        return self._add_norm(down, x, here + "norm", source + names.norm)

    def _linear(self, x: str, name: str, source: str) -> str:
        return linear(self.graph, x, name, [self.matrix(f"{source}.weight")], [self.vector(f"{source}.bias")])

    def _add_norm(self, x: str, skip: str, name: str, source: str) -> str:
        weights = self._norm_weights(source)
        return self.graph.node("SkipLayerNormalization", [x, skip, *weights], name, epsilon=self.a.norm_eps)

    def _norm_weights(self, source: str) -> tuple[str, str]:
        weight, bias = (
            self.graph.constant(f"{source}.{part}", self.vector(f"{source}.{part}")) for part in ("weight", "bias")
        )
        return weight, bias

    def _activation(self, x: str, name: str) -> str:
        approximate = _ACTIVATIONS[self.a.activation]
        if approximate is None:
            return self.graph.node("Relu", [x], name)
        return self.graph.node("Gelu", [x], name, approximate=approximate)

    def _mean(self, x: str, name: str) -> None:
        graph = self.graph
        mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        column = graph.node("Unsqueeze", [mask, self._whole("axis_2", [2])], "mask.column")
        axis = self._whole("axis_1", [1])
        kept = graph.node("Mul", [self._batched(x), column], "kept")
        total = graph.node("ReduceSum", [kept, axis], "kept.sum", keepdims=0)
        tokens = graph.node("ReduceSum", [column, axis], "tokens", keepdims=0)
        graph.node("Div", [total, tokens], name)
