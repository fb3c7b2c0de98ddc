"""A text encoder on the device: texts become vectors whose dot products say how near their meanings are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.reader import sha256_of
from edge_runtime.errors import BundleError, DamagedFileError, MissingFileError, UnsupportedVersionError
from edge_runtime.retrieval.text_graph import DATA_NAME, GRAPH_NAME, TOKENIZER_NAME, TextGraph

ENCODER_NAME = "encoder.json"
FORMAT = "cogenesis-encoder/1"
FILES = (GRAPH_NAME, DATA_NAME, TOKENIZER_NAME)


@dataclass(frozen=True, slots=True)
class EncoderFile:
    """A file of an encoder's directory, with its size in bytes and SHA-256 in lower-case hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class GoldenText:
    """A text and its vector, by which a port to another language checks itself."""

    text: str
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """What `encoder.json` says; a vector is the mean of the last hidden states, not normalised.

    Attributes:
        created_by: program and version.
        model: name of the model that it was made from.
        license: of the model.
        dimension: of a vector.
        max_tokens: of a text, special ones included; what is beyond is cut off.
        quantization: how the weights are stored, "fp32" or "int8".
        tolerance: largest difference to a golden vector, as a share of its length.
        golden: texts and their vectors.
        files: every file but this one.
    """

    created_by: str
    model: str
    license: str
    dimension: int
    max_tokens: int
    quantization: str
    tolerance: float
    golden: tuple[GoldenText, ...]
    files: tuple[EncoderFile, ...]

    def json(self) -> str:
        """The card as a file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"

    @property
    def fingerprint(self) -> str:
        """Identity of graph, weights and tokenizer: what vectors are bound to."""
        listed = "".join(f"{file.path}\0{file.sha256}\n" for file in sorted(self.files, key=lambda file: file.path))
        return hashlib.sha256(f"{self.max_tokens}\n{listed}".encode()).hexdigest()


class TextEncoder:
    """An encoder's directory, loaded."""

    def __init__(self, card: EncoderCard, graph: TextGraph) -> None:
        self.card = card
        self._graph = graph
        graph.tokenizer.enable_truncation(card.max_tokens)

    @classmethod
    def load(cls, directory: Path | str, *, threads: int | None = None, verify: bool = True) -> TextEncoder:
        """Load a directory that `cogenesis export encoder` made.

        Args:
            directory: the directory.
            threads: None takes all usable cores.
            verify: compare all files with their hashes first.

        Raises:
            BundleError: a file is missing, damaged or from another version.
        """
        directory = Path(directory)
        card = read_encoder_card(directory)
        if verify:
            for file in card.files:
                _verify(directory / file.path, file)
        return cls(card, TextGraph(directory, threads))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts: (n, dimension) float32, in their order.

        Raises:
            BundleError: the graph fails.
        """
        vectors = self._graph.run([self.token_ids(text) for text in texts])
        if not len(texts):
            return np.zeros((0, self.card.dimension), np.float32)
        if vectors.shape[1:] != (self.card.dimension,) or not np.isfinite(vectors).all():
            raise BundleError(f"The encoder gives no vectors of {self.card.dimension} numbers: {self._graph.path}.")
        return vectors

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, special ones included, cut to what the encoder takes."""
        # Half of a surrogate pair is no text to a tokenizer.
        return list(self._graph.tokenizer.encode(text.encode("utf-8", "replace").decode()).ids)

    def check(self) -> float:
        """The largest difference to a golden vector, as a share of its length.

        Raises:
            BundleError: it is more than the tolerance.
        """
        vectors = self.embed([golden.text for golden in self.card.golden])
        wanted = np.array([golden.vector for golden in self.card.golden], np.float32)
        difference = float((np.linalg.norm(vectors - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())
        if not difference <= self.card.tolerance:
            raise BundleError(
                f"The encoder does not give its own vectors: {self._graph.path}, they differ by {difference:.2g}, "
                f"allowed are {self.card.tolerance:.2g}. Export it again."
            )
        return difference


def read_encoder_card(directory: Path) -> EncoderCard:
    """Read a directory's `encoder.json`.

    Raises:
        BundleError: there is none, or it is damaged or from another version.
    """
    path = directory / ENCODER_NAME
    try:
        body = json.loads(path.read_bytes())
        if body["format"] != FORMAT:
            raise UnsupportedVersionError(
                f"The encoder is of another version: {path} ('{body['format']}', this program reads '{FORMAT}'). "
                "Update cogenesis-edge, or export it again."
            )
        return _card(body)
    except FileNotFoundError:
        raise BundleError(
            f"There is no text encoder here: {directory} (no {ENCODER_NAME}). Make one with `cogenesis export encoder`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"The encoder's card can't be read: {path} ({error}). Export the encoder again.") from None


def _card(body: dict[str, Any]) -> EncoderCard:
    files = tuple(EncoderFile(str(file["path"]), int(file["size"]), str(file["sha256"])) for file in body["files"])
    if {file.path for file in files} != set(FILES):
        raise ValueError(f"its files are not {', '.join(FILES)}")
    dimension, max_tokens = int(body["dimension"]), int(body["max_tokens"])
    golden = tuple(GoldenText(str(item["text"]), tuple(map(float, item["vector"]))) for item in body["golden"])
    if dimension < 1 or max_tokens < 1 or not golden or any(len(item.vector) != dimension for item in golden):
        raise ValueError("its sizes do not fit together")
    return EncoderCard(
        str(body["created_by"]),
        str(body["model"]),
        str(body["license"]),
        dimension,
        max_tokens,
        str(body["quantization"]),
        float(body["tolerance"]),
        golden,
        files,
    )


def _verify(path: Path, file: EncoderFile) -> None:
    mend = "Copy the encoder again, or export it again."
    try:
        same = path.stat().st_size == file.size and sha256_of(path) == file.sha256
    except OSError as error:
        raise MissingFileError(f"A file of the encoder can't be read: {path} ({error.strerror}). {mend}") from None
    if not same:
        raise DamagedFileError(f"A file of the encoder is damaged: {path} (its SHA-256 differs). {mend}")
