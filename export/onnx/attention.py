"""Writes causal attention over shared KV buffers: norms and rotation of heads, windows, soft caps, padded heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from export.model.architecture import Architecture
    from export.model.rope import Rope
    from export.onnx.graph_writer import GraphWriter

_HEAD, _HALF = 16, 8  # onnxruntime's kernel takes heads and rotated halves of a multiple of these widths only


def kernel_layout(architecture: Architecture) -> tuple[int, ...] | None:
    """Return which of a head's values is at each place in the kernel's wider head; -1 is a zero.

    Each of the two halves that turn together is padded, then the whole head. None means that heads fit as they are.
    """
    width, half = architecture.head_dim, len(architecture.rope.inverse_frequencies)
    gap = (-1,) * (-half % _HALF)
    places = (*range(half), *gap, *range(half, 2 * half), *gap, *range(2 * half, width))
    places += (-1,) * (-len(places) % _HEAD)
    return None if len(places) == width else places


def cache_width(architecture: Architecture) -> int:
    """Return the width of a head in the KV buffers: the model's own, or a wider one that the kernel takes."""
    return len(kernel_layout(architecture) or range(architecture.head_dim))


class Attention:
    """Writes the attention of each layer.

    Heads of another width than the kernel's get zeros behind the projections, not in their weights: so adapters and
    quantized weights stay as they are. Zeros change no product, and attention's are left out again.
    """

    def __init__(
        self, graph: GraphWriter, architecture: Architecture, vector: Callable[[str], NDArray[np.float32]]
    ) -> None:
        """See `export.onnx.graph.write_graph`."""
        self.graph, self.a, self.vector = graph, architecture, vector
        self.width, self.layout = cache_width(architecture), kernel_layout(architecture)
        self._tables: dict[Rope, tuple[str, str]] = {}

    def write(self, layer: int, qkv: str) -> str:
        """Write attention over packed (S, q + k + v), which extends the layer's KV buffers; returns (S, q)."""
        graph, a = self.graph, self.a
        here = f"layers.{layer}."
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in past:
            graph.input(name, TensorProto.FLOAT, [1, a.kv_heads, "L", self.width])
        for name in present:
            graph.output(name, [1, a.kv_heads, "L", self.width])
        if a.head_norms != "none":
            queries = self._normed_heads(layer, qkv)
        else:
            queries = [self._batched(qkv, here + "qkv", a.heads + 2 * a.kv_heads), "", ""]
        rope = a.layer_rope(layer)
        tables = [] if rope is None else self._rotary_tables(rope)
        options: dict[str, Any] = {"do_rotary": int(rope is not None)}
        options["scale"] = 1.0 if rope is not None and self._whole(rope) else a.query_scale
        window = a.windows[layer]
        if window is not None and window < a.context_length:
            options["local_window_size"] = window
        if a.attention_cap is not None:
            options["softcap"] = a.attention_cap
        graph.nodes(
            "GroupQueryAttention",
            [*queries, *past, "seqlens_k", "total_sequence_length", *tables],
            [here + "attention.batched", *present],
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            **options,
        )
        return self._unbatched(here + "attention.batched", here + "attention")

    def _whole(self, rope: Rope) -> bool:
        return 2 * len(rope.inverse_frequencies) == self.a.head_dim

    def _rotary_tables(self, rope: Rope) -> tuple[str, str]:
        """Write cosines and sines as arithmetic, which takes no space in the file; onnxruntime folds it at load."""
        if rope in self._tables:
            return self._tables[rope]
        graph, a = self.graph, self.a
        prefix = f"rope.{len(self._tables)}" if self._tables else "rope"
        bounds = [
            graph.constant(f"position.{name}", np.array(value, np.float32))
            for name, value in (("start", 0), ("end", a.context_length), ("step", 1))
        ]
        if not graph.has_value("positions"):
            positions = graph.node("Range", bounds, "positions")
            axis = graph.constant("axis_1", np.array([1], np.int64))
            graph.node("Unsqueeze", [positions, axis], "positions.column")
        wide = np.array([rope.inverse_frequencies], np.float32)
        wide = np.pad(wide, ((0, 0), (0, -wide.shape[1] % _HALF)))
        frequencies = graph.constant(f"{prefix}.inverse_frequencies", wide)
        angles = graph.node("Mul", ["positions.column", frequencies], f"{prefix}.angles")
        # The factor of the scores is split between the rotated queries and keys, because onnxruntime's fast product
        # for a single query requires a scale of 1. Values that are not rotated would miss it.
        scale = rope.attention_factor * (a.query_scale**0.5 if self._whole(rope) else 1.0)
        factor = graph.constant(f"{prefix}.factor", np.array(scale, np.float32))
        for operator, name in (("Cos", f"{prefix}.cos"), ("Sin", f"{prefix}.sin")):
            graph.node("Mul", [graph.node(operator, [angles], f"{name}.plain"), factor], name)
        self._tables[rope] = f"{prefix}.cos", f"{prefix}.sin"
        return self._tables[rope]

    def _normed_heads(self, layer: int, qkv: str) -> list[str]:
        """Split packed projections, and normalize queries and keys; returns three (1, S, width) values."""
        graph, a = self.graph, self.a
        here = f"layers.{layer}."
        sizes = graph.constant("qkv.sizes", np.array([a.query_width, a.kv_width, a.kv_width], np.int64))
        parts = graph.nodes("Split", [qkv, sizes], [here + part for part in ("q", "k", "v")], axis=1)
        heads = graph.constant("heads.shape", np.array([0, -1, a.head_dim], np.int64))
        values = []
        for part, count in (("q", a.heads), ("k", a.kv_heads)):
            x = here + part
            if a.head_norms == "head":
                x = graph.node("Reshape", [x, heads], f"{here}{part}.heads")
            weight = self.vector(f"model.layers.{layer}.self_attn.{part}_norm.weight") + np.float32(a.norm_offset)
            normed = graph.node(
                "SimplifiedLayerNormalization",
                [x, graph.constant(f"{here}{part}_norm.weight", weight)],
                f"{here}{part}.normed",
                epsilon=a.norm_eps,
                axis=-1,
            )
            values.append(self._batched(normed, here + part, count))
        return [*values, self._batched(parts[2], here + "v", a.kv_heads)]

    def _batched(self, x: str, name: str, heads: int) -> str:
        """Give heads (S, heads * head_dim) or (S, heads, head_dim) the shape (1, S, heads * width of the kernel)."""
        graph = self.graph
        if self.layout is not None:
            apart = graph.constant("heads.shape", np.array([0, -1, self.a.head_dim], np.int64))
            split = graph.node("Reshape", [x, apart], f"{name}.apart")
            zero = graph.constant("heads.zero", np.array([0, 0, 0, 0, 0, 1], np.int64))
            padded = graph.node("Pad", [split, zero], f"{name}.padded")
            places = np.array([self.a.head_dim if place < 0 else place for place in self.layout], np.int64)
            x = graph.node("Gather", [padded, graph.constant("heads.places", places)], f"{name}.wide", axis=2)
        whole = graph.constant(f"heads.{heads}.shape", np.array([1, -1, heads * self.width], np.int64))
        return graph.node("Reshape", [x, whole], f"{name}.batched")

    def _unbatched(self, x: str, name: str) -> str:
        """Give (1, S, heads * width of the kernel) the shape (S, heads * head_dim)."""
        graph, a = self.graph, self.a
        if self.layout is not None:
            apart = graph.constant("heads.wide", np.array([-1, a.heads, self.width], np.int64))
            split = graph.node("Reshape", [x, apart], f"{name}.apart")
            places = np.array([self.layout.index(place) for place in range(a.head_dim)], np.int64)
            x = graph.node("Gather", [split, graph.constant("heads.back", places)], f"{name}.narrow", axis=2)
        together = graph.constant("heads.together", np.array([-1, a.query_width], np.int64))
        return graph.node("Reshape", [x, together], name)
