"""Turns a trained selector into a directory for devices: a graph, a tokenizer and `selector.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from edge_runtime.files.staged_directory import staged_directory
from edge_runtime.retrieval.selector_card import SELECTOR_NAME
from edge_runtime.retrieval.text_graph import GRAPH_NAME, TOKENIZER_NAME, TextGraph
from export.encoders.export import EncoderScheme, write_network
from export.encoders.graph import encoder_architecture
from export.errors import ConformanceError
from export.model.hf_source import read_config
from export.progress import Progress
from personalization.retrievers.selector import Selector

# What a score may differ from torch's by, as a share of the largest that the head gives to a vector of that length.
_TOLERANCE = {"fp32": 1e-4, "int8": 0.1}
_CANDIDATES = (
    ("The capital of France is Paris.", "Paris"),
    ("Grüße aus Zürich, naïve café, 東京の天気 🙂", ""),
    ("A letter to the future need not be long. " * 40, "Say where you are, and what the weather is like."),
)


@dataclass(frozen=True, slots=True)
class ExportedSelector:
    """A selector for devices.

    Attributes:
        path: its directory.
        size: bytes of all files.
        difference: largest difference of a score to torch's, as a share of what the head can give.
    """

    path: Path
    size: int
    difference: float


def export_selector(
    directory: Path, out: Path, scheme: EncoderScheme, *, force: bool, progress: Progress
) -> ExportedSelector:
    """Export a selector and check it against torch.

    Args:
        directory: by `cogenesis rspg train`, on a BERT, RoBERTa or DistilBERT.
        out: the directory to make.
        scheme: "fp32" is exact; "int8" stores weights with 8 bits, a quarter of the size.
        force: replace a selector for devices that is already there.
        progress: called with what is being done.

    Raises:
        CogenesisError: the selector is damaged, its encoder is not supported or differs from torch, or `out` can't be
            written.
    """
    progress("Reading the selector", 0, 1)
    architecture = encoder_architecture(read_config(directory), str(directory / "config.json"))
    selector = Selector.load(directory)
    progress("Reading the selector", 1, 1)
    head = selector.module.head
    with staged_directory(out, replaceable=_is_selector, replace=force) as staging:
        progress("Writing the graph", 0, 1)
        weights = head.weight.detach().numpy(), head.bias.detach().numpy()
        write_network(selector.encoder.pooling.backbone, architecture, staging, scheme, weights)
        (staging / TOKENIZER_NAME).write_text(selector.tokenizer.to_str(), encoding="utf-8")
        (staging / SELECTOR_NAME).write_text(selector.card.json(), encoding="utf-8")
        difference = _difference(selector, TextGraph(staging), scheme)
        progress("Writing the graph", 1, 1)
    return ExportedSelector(out, sum(file.stat().st_size for file in out.iterdir()), difference)


def _difference(selector: Selector, graph: TextGraph, scheme: EncoderScheme) -> float:
    """The largest difference of a score.

    Raises:
        ConformanceError: it is more than rounding explains.
    """
    tokens = [selector.tokens(prompt, output) for prompt, output in _CANDIDATES]
    with torch.inference_mode():
        vectors = selector.encoder.pooling(**selector.encoder.padded(tokens))
        wanted = selector.module.head(vectors).squeeze(-1)
    largest = vectors.norm(dim=1) * selector.module.head.weight.norm() + selector.module.head.bias.abs()
    apart = (torch.from_numpy(graph.run(tokens)) - wanted).abs()
    difference = float((apart / largest.clamp(min=torch.finfo(torch.float32).tiny)).max())
    if not difference <= _TOLERANCE[scheme]:
        raise ConformanceError(
            f"The exported selector differs from torch by {difference:.2g} of what its head can give, allowed are "
            f"{_TOLERANCE[scheme]:.2g}. Use --quantize fp32, or report the model."
        )
    return difference


def _is_selector(path: Path) -> bool:
    return (path / SELECTOR_NAME).is_file() and (path / GRAPH_NAME).is_file()
