"""Makes and compares conformance vectors: prompts with the logits and tokens that every port must reproduce."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import BundleError
from edge_runtime.text.prompt_form import prompt_form_of
from edge_runtime.text.tokenizer import Tokenizer
from export.errors import ConformanceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.bundle.manifest import DecoderSpec
    from edge_runtime.bundle.reader import Bundle
    from edge_runtime.decoders.protocol import Decoder

FORMAT = "cogenesis-golden/1"
TOP = 20
GREEDY_TOKENS = 16

# Largest allowed difference of a logit, in standard deviations of its row. Float32 graphs differ only by the order of
# sums. With 8-bit activations (accuracy level 4), processors round differently: x86-64 and arm64 differed by 0.7 to
# 1.5 logits, at a standard deviation of about 3 per row.
_RELATIVE_TOLERANCE = {"fp32": 1e-3, "other": 0.75}

_PARAGRAPH = (
    "A letter to the future need not be long. Say where you are, what the weather is like, and what you had for "
    "breakfast; say whom you miss and what you would like to remember. The rest will be different by then. "
)
_PROMPTS = {
    "words": "The capital of France is",
    "unicode": "Grüße aus Zürich, naïve café, 東京の天気 🙂: π ≈ 3.14159\n\n\tdef f(x): return x",
    "several chunks": _PARAGRAPH * 12,
}
_QUESTION = "Write one sentence about the sea."


@dataclass(frozen=True, slots=True)
class Vector:
    """One prompt and the expected output.

    Attributes:
        name: what the prompt tests.
        token_ids: the prompt.
        top_ids, top_logits: the highest logits after the prompt, in descending order.
        greedy: the continuation under greedy decoding, one token at a time.
    """

    name: str
    token_ids: tuple[int, ...]
    top_ids: tuple[int, ...]
    top_logits: tuple[float, ...]
    greedy: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Vectors:
    """All vectors of a bundle; `tolerance` is the largest allowed difference of a logit."""

    tolerance: float
    vectors: tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class Conformance:
    """How much a decoder differs from the vectors.

    Attributes:
        vectors: number of vectors compared.
        tolerance: allowed difference of a logit.
        max_difference: largest difference found.
        greedy_equal, greedy_total: greedy tokens that this decoder also ranks first, and all greedy tokens.
    """

    vectors: int
    tolerance: float
    max_difference: float
    greedy_equal: int
    greedy_total: int


def make_vectors(bundle: Bundle, spec: DecoderSpec) -> Vectors:
    """Make vectors by running a decoder of the bundle on several kinds of prompts."""
    decoder = open_decoder(bundle, spec.backend)
    vectors, spreads = [], []
    for name, token_ids in _prompts(bundle).items():
        decoder.rewind(0)
        row = decoder.extend(token_ids)[-1]
        top = np.argsort(-row, kind="stable")[:TOP]
        spreads.append(float(row.std()))
        vectors.append(
            Vector(
                name,
                tuple(token_ids),
                tuple(int(token) for token in top),
                tuple(round(float(value), 6) for value in row[top]),
                tuple(_greedy(decoder, row)),
            )
        )
    scheme = "fp32" if spec.quantization.scheme == "fp32" else "other"
    return Vectors(round(_RELATIVE_TOLERANCE[scheme] * float(np.mean(spreads)), 6), tuple(vectors))


def compare(decoder: Decoder, vectors: Vectors, where: str) -> Conformance:
    """Compare a decoder with conformance vectors.

    The decoder is fed the greedy tokens of the vectors. Each must be within twice the tolerance of the highest logit,
    because processors may choose differently between two tokens with almost equal logits.

    Raises:
        ConformanceError: a logit differs by more than the tolerance, or a greedy token by more than twice that.
    """
    largest, equal, total = 0.0, 0, 0
    for vector in vectors.vectors:
        decoder.rewind(0)
        row = decoder.extend(vector.token_ids)[-1]
        difference = float(np.abs(row[list(vector.top_ids)] - np.array(vector.top_logits, np.float32)).max())
        largest = max(largest, difference) if np.isfinite(difference) else float("inf")
        for token in vector.greedy:
            behind = float(row.max() - row[token])
            equal += behind == 0.0
            total += 1
            if not behind <= 2 * vectors.tolerance:
                raise ConformanceError(
                    f"The bundle does not continue '{vector.name}' as it should: {where}, token {token} is "
                    f"{behind:.3f} logits behind, allowed are {2 * vectors.tolerance:.3f}. Export it again."
                )
            row = decoder.extend([token])[-1]
    if not largest <= vectors.tolerance:
        raise ConformanceError(
            f"The bundle does not give its own logits: {where}, the difference is {largest:.4f}, "
            f"allowed are {vectors.tolerance:.4f}. Export it again."
        )
    return Conformance(len(vectors.vectors), vectors.tolerance, largest, equal, total)


def write_vectors(vectors: Vectors) -> str:
    """Serialize the vectors as JSON."""
    return json.dumps({"format": FORMAT, **asdict(vectors)}, separators=(",", ":")) + "\n"


def read_vectors(text: str | bytes, where: str, vocab_size: int) -> Vectors:
    """Parse conformance vectors.

    Raises:
        ConformanceError: the text does not have this format.
    """
    try:
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}")
        vectors = tuple(_vector(item, vocab_size) for item in body["vectors"])
        if not vectors:
            raise ValueError("no vectors")
        return Vectors(float(body["tolerance"]), vectors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConformanceError(f"The conformance vectors can't be read: {where} ({error}). Export it again.") from None


def _vector(item: Mapping[str, Any], vocab_size: int) -> Vector:
    ids = {name: tuple(int(value) for value in item[name]) for name in ("token_ids", "top_ids", "greedy")}
    if not ids["token_ids"] or any(not 0 <= value < vocab_size for values in ids.values() for value in values):
        raise ValueError("a token id is outside the vocabulary")
    logits = tuple(float(value) for value in item["top_logits"])
    if len(logits) != len(ids["top_ids"]) or not logits:
        raise ValueError("top_ids and top_logits differ in length")
    return Vector(str(item["name"]), ids["token_ids"], ids["top_ids"], logits, ids["greedy"])


def _prompts(bundle: Bundle) -> dict[str, Sequence[int]]:
    manifest = bundle.manifest
    tokenizer = Tokenizer.load(bundle.path(manifest.tokenizer.path))
    texts = dict(_PROMPTS)
    if manifest.chat_template:
        # The model is usable even if its template rejects such a plain conversation.
        with suppress(BundleError):
            texts["chat"] = prompt_form_of(manifest).render([{"role": "user", "content": _QUESTION}])
    room = max(1, manifest.context_length - GREEDY_TOKENS)
    found = {name: tokenizer.encode(text)[:room] for name, text in texts.items()}
    return {name: ids for name, ids in found.items() if ids} or {"first token": [0]}


def _greedy(decoder: Decoder, row: NDArray[np.float32]) -> list[int]:
    tokens = []
    for _ in range(min(GREEDY_TOKENS, decoder.context_length - decoder.length)):
        tokens.append(int(row.argmax()))
        row = decoder.extend([tokens[-1]])[-1]
    return tokens
