"""Exports a decoder of transformers with torch's own ONNX exporter, with a KV cache that grows and can be truncated."""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from export.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PAST, _NEW = 3, 2  # lengths of the example inputs; different, so that the exporter can't take them for one


class _WithCache(torch.nn.Module):
    """A decoder whose KV cache is given and returned as tensors; see docs/bundle.md for their names and shapes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute logits (1, S, vocabulary) and the cache of past and new tokens, two tensors a layer."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        mask = input_ids.new_ones(1, past[0].shape[2] + input_ids.shape[1])
        places = {"position_ids": position_ids} if self.takes_positions else {}
        found = self.model(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True, **places)
        present = [tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return found.logits, *present


def load_decoder(path: Path) -> Any:
    """Load a model directory's decoder in float32.

    Raises:
        SourceError: the model can't be loaded.
        UnsupportedModelError: see `transformers_config`.
    """
    from transformers import AutoModelForCausalLM

    from export.model.transformers_config import transformers_config

    config = transformers_config(path)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, local_files_only=True
        ).eval()
    except Exception as error:  # transformers does not say what it raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"The model can't be loaded: {path} ({reason}). Download it again.") from None


def export_with_torch(model: Any, file: Path) -> None:
    """Write a decoder's graph.

    Args:
        model: the loaded model in float32, which takes `past_key_values`.
        file: the graph to write; large weights go into a file beside it.

    Raises:
        Exception: torch can't export the model; it does not say what it raises.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            # Within the original length, to which the context is limited, the frequencies are those of a short text.
            module.rope_type = "default"
    shapes = _cache_shapes(model)
    past = [torch.zeros(1, heads, _PAST, width) for heads, width in shapes]
    ids, positions = torch.zeros(1, _NEW, dtype=torch.long), torch.arange(_PAST, _PAST + _NEW)[None]
    names = [f"{{}}.{at // 2}.{('key', 'value')[at % 2]}" for at in range(len(past))]
    grows = torch.export.Dim.DYNAMIC
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _WithCache(model.eval()),
            (ids, positions, past),
            input_names=["input_ids", "position_ids", *(name.format("past_key_values") for name in names)],
            output_names=["logits", *(name.format("present") for name in names)],
            dynamic_shapes=({1: grows}, {1: grows}, [{2: grows} for _ in past]),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(file), external_data=_size(model) > 1 << 30)
    _add_mask(file)


def _cache_shapes(model: Any) -> list[tuple[int, int]]:
    """Return heads and width of every cached tensor, from a run on one token."""
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
    found = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return [(int(tensor.shape[1]), int(tensor.shape[3])) for tensor in found]


def _size(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _add_mask(file: Path) -> None:
    """Add the input `attention_mask`, which every portable graph has; all tokens are always attended to."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    _drop_traces(model)
    _drop_unused(model.graph)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, [1, "total_length"])
    )
    onnx.save(model, file)


def _drop_unused(graph: Any) -> None:
    """Drop constants that no node reads, such as GPT-2's masks for attention of other kinds."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # inner graphs read from outside
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _drop_traces(model: Any) -> None:
    """Drop the exporter's stack traces, which are larger than a small model and name files of this machine."""
    for graph in (model.graph, *model.functions):
        for part in (graph, *graph.node, *graph.value_info):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch prints and warns about its own internals."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
