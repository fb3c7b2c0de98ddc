"""Writes a decoder graph into a temporary directory and opens it, and looks at what enters each layer of a graph."""

from __future__ import annotations

import functools
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edge_runtime.bundle.manifest import (
    BACKEND_ONNX,
    GRAPH_SHARED_KV,
    ROLE_GRAPH,
    ROLE_WEIGHTS,
    DecoderSpec,
    FileEntry,
    Manifest,
    ModelCard,
    Quantization,
    TokenizerSpec,
    WeightSource,
)
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.open import open_decoder
from export.model.lora_sites import lora_sites
from export.onnx.attention import cache_width
from export.onnx.graph import write_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.decoders.protocol import Decoder
    from export.model.architecture import Architecture

# The residual stream in front of each layer but the first.
_LAYER_INPUT = re.compile(r"layers\.(\d+)\.input_norm\.sum\Z")


@contextmanager
def opened_graph(
    architecture: Architecture, read: Callable[[str], NDArray[np.float32]]
) -> Iterator[tuple[Decoder, Callable[[Sequence[int]], Mapping[int, NDArray[np.float32]]]]]:
    """Write a float32 graph and open it.

    Args:
        architecture: the decoder's shape.
        read: returns a weight by its Hugging Face name.

    Yields:
        The decoder, and a function that returns what enters its layers for a text; both are gone afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="cogenesis-check-") as directory:
        root = Path(directory)
        (root / BACKEND_ONNX).mkdir()
        write_graph(architecture, read, read, root / BACKEND_ONNX, lambda _done, _total: None)
        spec = DecoderSpec(
            f"{BACKEND_ONNX}/model.onnx",
            GRAPH_SHARED_KV,
            architecture.layers,
            architecture.kv_heads,
            cache_width(architecture),
            lora_sites(architecture),
            Quantization("fp32", ""),
            "",
        )
        decoder = opened_bundle(root, spec, architecture.context_length, architecture.vocab)
        yield decoder, functools.partial(graph_layer_inputs, root / spec.graph)


def opened_bundle(root: Path, spec: DecoderSpec, context_length: int, vocab_size: int) -> Decoder:
    """Open a decoder that is not in a finished bundle yet.

    Args:
        root: the directory in which the decoder's paths are.
        spec: the decoder.
        context_length: how many positions it serves.
        vocab_size: width of a row of logits.
    """
    files = tuple(
        FileEntry(
            path.relative_to(root).as_posix(),
            ROLE_GRAPH if path == root / spec.graph else ROLE_WEIGHTS,
            path.stat().st_size,
            "0" * 64,
        )
        for path in sorted((root / spec.directory).iterdir())
    )
    manifest = Manifest(
        created_by="",
        model=ModelCard("", "", "", "", 0),
        tokenizer=TokenizerSpec("", "", "", "", ()),
        chat_template="",
        context_length=context_length,
        vocab_size=vocab_size,
        decoders=(spec,),
        source=WeightSource("", "", ""),
        files=files,
    )
    return open_decoder(Bundle(root, manifest), spin=False)


def bundle_layer_inputs(
    bundle: Bundle, spec: DecoderSpec
) -> Callable[[Sequence[int]], Mapping[int, NDArray[np.float32]]]:
    """Return `graph_layer_inputs` for a bundle's decoder."""
    return functools.partial(graph_layer_inputs, bundle.path(spec.graph))


def graph_layer_inputs(graph: Path, token_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """Run a graph of kind "shared_kv" on a text and return what enters its layers, by their number: (S, hidden).

    The graph names these values only in front of layers that begin with a norm.
    """
    model = onnx.load(graph, load_external_data=False)
    found = {
        int(match[1]): name for node in model.graph.node for name in node.output if (match := _LAYER_INPUT.match(name))
    }
    for name in found.values():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Without fusion, so that every value stays visible.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    shown = graph.with_name("layers.onnx")  # beside the original, because it names its weights' file
    try:
        onnx.save(model, shown)
        session = onnxruntime.InferenceSession(str(shown), options, providers=["CPUExecutionProvider"])
    finally:
        shown.unlink(missing_ok=True)
    count = len(token_ids)
    feeds = {
        "input_ids": np.array([token_ids], np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array([count], np.int32),
        "rows": np.array([], np.int64),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            _, heads, _, width = value.shape
            feeds[value.name] = np.zeros((1, heads, count, width), np.float32)
    values = session.run(list(found.values()), feeds)
    return dict(zip(found, values, strict=True))
