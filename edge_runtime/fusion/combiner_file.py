"""A combiner's file: one small safetensors file; every number in it is checked before anything is believed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import ROLE_COMBINER
from edge_runtime.bundle.reader import Bundle
from edge_runtime.bundle.tensor_file import LENGTH_BYTES, TensorHeader, read_header
from edge_runtime.errors import BundleError, RequestError
from edge_runtime.fusion.combiner import OUTPUTS, ROW_FEATURES, WITHOUT_FEATURES, Combiner, Layer
from edge_runtime.fusion.edge_features import SCHEDULE_FEATURES
from edge_runtime.fusion.sparse import RowFormat

FORMAT = "cogenesis-combiner/2"
COMBINER_DIRECTORY = "fusion"
"""Where it is in a bundle."""
LARGEST_FILE = 50_000
"""Bytes; a combiner has about 30,000."""

_DIGEST = "sha256"
_LARGEST_WEIGHT = 1e3
_MEND = "Train it again with `cogenesis collab fuse-train`."


def encode_combiner(combiner: Combiner) -> bytes:
    """The file's content; the same combiner gives the same bytes."""
    tensors = _tensors(combiner)
    metadata = {
        "format": FORMAT,
        "base": combiner.base,
        "cloud": combiner.cloud,
        "rows": json.dumps(asdict(combiner.rows), sort_keys=True),
        "uses_without": json.dumps(combiner.uses_without),
        "threshold": repr(combiner.threshold),
    }
    unsigned = _content(metadata, tensors)
    digest = _digest(read_header(io.BytesIO(unsigned), len(unsigned)), unsigned)
    return _content(metadata | {_DIGEST: digest}, tensors)


def read_combiner(path: Path) -> Combiner:
    """Read a combiner's file.

    Raises:
        BundleError: it is missing, damaged, from another version, or no combiner.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        return _decoded(content)
    except FileNotFoundError:
        raise BundleError(f"There is no combiner here: {path}. {_MEND}") from None
    except OSError as error:
        raise BundleError(f"The combiner can't be read: {path} ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"The combiner can't be used: {path} ({error}). {_MEND}") from None


def combiner_of(bundle: Bundle) -> Combiner:
    """A bundle's combiner.

    Raises:
        BundleError: it has none, or it is damaged or made for another model.
    """
    entry = bundle.manifest.file(ROLE_COMBINER)
    if entry is None:
        raise BundleError(
            f"The bundle has no combiner, which learned fusion and a learned schedule need: {bundle.root}. Train one "
            "with `cogenesis collab fuse-train` and add it with `cogenesis export combiner`."
        )
    path = bundle.path(entry.path)
    combiner = read_combiner(path)
    check_base(combiner, bundle.base, path)
    return combiner


def check_base(combiner: Combiner, base: str, path: Path) -> None:
    """Check that a combiner was trained with a bundle's edge model.

    Raises:
        BundleError: it was not.
    """
    if combiner.base != base:
        raise BundleError(
            f"The combiner was trained with another edge model: {path} (base {combiner.base[:12]}, the bundle's is "
            f"{base[:12]}). Score and train again with this one."
        )


def _decoded(content: bytes) -> Combiner:
    header = read_header(io.BytesIO(content), len(content))
    about = header.metadata
    if about.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if about.get(_DIGEST) != _digest(header, content):
        raise ValueError("its digest differs: it was damaged or edited")
    uses_without = {"true": True, "false": False}[about["uses_without"]]
    tensors = {name: _values(header, content, name) for name in header.tensors}
    combiner = Combiner(
        base=about["base"],
        cloud=about["cloud"],
        rows=_rows(about["rows"]),
        uses_without=uses_without,
        hidden=_layer(tensors, "hidden"),
        out=_layer(tensors, "out"),
        gain_hidden=_layer(tensors, "gain_hidden"),
        gain_out=_layer(tensors, "gain_out"),
        threshold=float(about["threshold"]),
        fingerprint=about[_DIGEST],
    )
    if tensors or not np.isfinite(combiner.threshold):
        raise ValueError("it has tensors that it should not have, or no threshold")
    inputs = ROW_FEATURES + WITHOUT_FEATURES * uses_without
    _check(combiner.hidden, combiner.out, inputs, OUTPUTS)
    _check(combiner.gain_hidden, combiner.gain_out, SCHEDULE_FEATURES, 1)
    return combiner


def _rows(text: str) -> RowFormat:
    body = json.loads(text)
    try:
        form = RowFormat(**body)
    except RequestError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if type(form.top_k) is not int:
        raise ValueError(f"the top_k of its rows is {form.top_k!r}")
    return form


def _layer(tensors: dict[str, NDArray[np.float64]], name: str) -> Layer:
    return Layer(tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias"))


def _check(first: Layer, second: Layer, inputs: int, outputs: int) -> None:
    """Hold two layers to the shapes that they must have together.

    Raises:
        ValueError: they don't fit.
    """
    hidden = first.bias.shape
    shapes = (first.weight.shape, hidden, second.weight.shape, second.bias.shape)
    if len(hidden) != 1 or shapes != ((inputs, *hidden), hidden, (*hidden, outputs), (outputs,)):
        raise ValueError(f"its layers have the shapes {shapes}, which don't fit")


def _values(header: TensorHeader, content: bytes, name: str) -> NDArray[np.float64]:
    place = header.tensors[name]
    if place.dtype != "F32":
        raise ValueError(f"tensor '{name}' is not F32")
    data = content[header.size + place.start : header.size + place.end]
    values = np.frombuffer(data, "<f4").reshape(place.shape).astype(np.float64)
    # Also false where one is not a number.
    if not bool((np.abs(values) <= _LARGEST_WEIGHT).all()):
        raise ValueError(f"tensor '{name}' has weights beyond {_LARGEST_WEIGHT:g}")
    return values


def _tensors(combiner: Combiner) -> dict[str, NDArray[np.float32]]:
    layers = {
        "hidden": combiner.hidden,
        "out": combiner.out,
        "gain_hidden": combiner.gain_hidden,
        "gain_out": combiner.gain_out,
    }
    parts = {f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")}
    return {name: values.astype("<f4") for name, values in parts.items()}


def _content(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    reached = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [reached, reached + values.nbytes]}
        reached += values.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *(v.tobytes() for v in tensors.values())])


def _digest(header: TensorHeader, content: bytes) -> str:
    return hashlib.sha256(header.canonical(without=_DIGEST) + content[header.size :]).hexdigest()
