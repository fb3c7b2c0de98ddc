"""Converts a text encoder (BERT, Contriever, MiniLM, RoBERTa) to a directory for devices: `export_encoder`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from edge_runtime.bundle.reader import sha256_of
from edge_runtime.files.staged_directory import staged_directory
from edge_runtime.retrieval.text_encoder import ENCODER_NAME, FILES, EncoderCard, EncoderFile, GoldenText, TextEncoder
from edge_runtime.retrieval.text_graph import TOKENIZER_NAME, TextGraph
from export.bundle.writer import created_by
from export.encoders.graph import EncoderArchitecture, encoder_architecture, write_encoder_graph
from export.encoders.sentence_files import Pooling, read_pooling
from export.errors import ConformanceError, SourceError, UnsupportedQuantizationError
from export.model.hf_source import model_license, read_config
from export.model.hf_tokenizer import HFTokenizerFiles, hf_tokenizer
from export.model.quantized_matrix import BLOCK_SIZE, Matrix
from export.progress import Progress, silent
from export.quantization.quantize import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

EncoderScheme: TypeAlias = Literal["fp32", "int8"]

# Allowed difference from torch's vector, relative to its length. fp32 differs by the order of sums, int8 also rounds.
_TOLERANCE = {"fp32": 1e-4, "int8": 0.1}
_TEXTS = (
    "The capital of France is Paris.",
    "Grüße aus Zürich, naïve café, 東京の天気 🙂: π ≈ 3.14159",
    "word",
    "A letter to the future need not be long. Say where you are, and what the weather is like. " * 40,
)


@dataclass(frozen=True, slots=True)
class ExportedEncoder:
    """An encoder on disk.

    Attributes:
        path: its directory.
        card: the content of its `encoder.json`.
        size: total size of the files in bytes.
        difference: largest difference from torch's vectors on several texts, relative to the vector's length.
    """

    path: Path
    card: EncoderCard
    size: int
    difference: float


def export_encoder(
    model: Path, out: Path, scheme: EncoderScheme = "fp32", *, force: bool = False, progress: Progress = silent
) -> ExportedEncoder:
    """Export an encoder and check it against torch.

    Args:
        model: a Hugging Face directory of a BERT, RoBERTa or DistilBERT, with safetensors or PyTorch's `.bin`.
        out: the directory to write.
        scheme: "fp32" is exact; "int8" stores 8-bit weights in blocks of 32, a quarter of the size.
        force: replace an existing encoder.
        progress: see `export.progress`.

    Raises:
        ExportError: the model is incomplete or not supported, differs from torch, or can't be written.
    """
    progress("Reading the model", 0, 1)
    config = read_config(model)
    architecture = encoder_architecture(config, str(model / "config.json"))
    pooling = read_pooling(model)
    network, tokenizer = load_network(model), hf_tokenizer(model, config)
    max_tokens = _most_tokens(model, architecture)
    progress("Reading the model", 1, 1)
    with staged_directory(out, replaceable=_is_encoder, replace=force) as directory:
        progress("Writing the graph", 0, 1)
        write_network(network, architecture, directory, scheme, pooling=pooling)
        (directory / TOKENIZER_NAME).write_text(tokenizer.json, encoding="utf-8")
        progress("Writing the graph", 1, 1)
        progress("Checking against torch", 0, 1)
        encoder = TextEncoder(_card(model, directory, architecture.hidden, max_tokens, scheme), TextGraph(directory))
        difference = _difference(encoder, network, scheme, pooling)
        golden = tuple(
            GoldenText(text, tuple(round(float(value), 6) for value in vector))
            for text, vector in zip(_TEXTS, encoder.embed(_TEXTS), strict=True)
        )
        card = replace(encoder.card, golden=golden)
        (directory / ENCODER_NAME).write_text(card.json(), encoding="utf-8")
        progress("Checking against torch", 1, 1)
    size = sum(file.stat().st_size for file in out.iterdir())
    return ExportedEncoder(out, card, size, difference)


def load_network(path: Path) -> Any:
    """Load an encoder's weights with transformers, in float32, without a pooler or a head.

    Raises:
        SourceError: the weights are incomplete or damaged.
    """
    from transformers import AutoModel

    try:
        network, found = AutoModel.from_pretrained(
            path, dtype="float32", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers does not say what it raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"The encoder can't be loaded: {path} ({reason}).") from None
    missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise SourceError(f"The encoder lacks weights: {path} ({missing[0]}). Download or train it again.")
    return network.eval()


def write_network(
    network: Any,
    architecture: EncoderArchitecture,
    directory: Path,
    scheme: EncoderScheme,
    head: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    pooling: Pooling = "mean",
) -> None:
    """Write the graph of a loaded encoder; see `write_encoder_graph`.

    Raises:
        UnsupportedQuantizationError: rows can't be split into blocks.
    """
    weights: Mapping[str, Any] = network.state_dict()

    def vector(name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = weights[name].float().numpy()
        return array

    def matrix(name: str) -> Matrix:
        array = vector(name)
        if scheme == "fp32":
            return array
        if array.shape[1] % BLOCK_SIZE:
            raise UnsupportedQuantizationError(
                f"A row of '{name}' has {array.shape[1]} numbers, not a multiple of {BLOCK_SIZE}. Use `scheme` fp32."
            )
        return quantize(array, 8)

    types = "embeddings.token_type_embeddings.weight" in weights
    write_encoder_graph(architecture, matrix, vector, directory, token_types=types, pooling=pooling, head=head)


def _card(model: Path, directory: Path, dimension: int, max_tokens: int, scheme: EncoderScheme) -> EncoderCard:
    listed = (directory / name for name in FILES)
    return EncoderCard(
        created_by(),
        model.resolve().name,
        model_license(model),
        dimension,
        max_tokens,
        scheme,
        _TOLERANCE[scheme],
        (),
        tuple(EncoderFile(file.name, file.stat().st_size, sha256_of(file)) for file in listed),
    )


def _difference(encoder: TextEncoder, network: Any, scheme: EncoderScheme, pooling: Pooling) -> float:
    """Compute the largest difference from torch's vectors, relative to the vector's length.

    Raises:
        ConformanceError: the difference is larger than rounding explains.
    """
    import torch

    vectors, largest = encoder.embed(_TEXTS), 0.0
    for text, vector in zip(_TEXTS, vectors, strict=True):
        ids = torch.tensor([encoder.token_ids(text)])
        with torch.inference_mode():
            states = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            wanted = (states.mean(0) if pooling == "mean" else states[0]).numpy()
        largest = max(largest, float(np.linalg.norm(vector - wanted) / np.linalg.norm(wanted)))
    if not largest <= _TOLERANCE[scheme]:
        raise ConformanceError(
            f"The exported encoder differs from torch by {largest:.2g} of a vector's length, allowed are "
            f"{_TOLERANCE[scheme]:.2g}. Use `scheme` fp32, or report the model."
        )
    return largest


def _most_tokens(path: Path, architecture: EncoderArchitecture) -> int:
    """Return the model's number of positions, or the tokenizer's limit if that is lower."""
    return min(architecture.positions, HFTokenizerFiles(path).max_tokens or architecture.positions)


def _is_encoder(path: Path) -> bool:
    return (path / ENCODER_NAME).is_file()
