"""A user's LoRA adapter as the decoder takes it: one safetensors file, bound to the base it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edge_runtime.errors import AdapterError

ADAPTER_FORMAT = "cogenesis-adapter/1"


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """LoRA matrices of one user, scaling folded into B.

    Attributes:
        base: `Bundle.fingerprint` of the base model it was made for.
        fingerprint: SHA-256 of the file, or of the matrices where there is none.
        matrices: (layer, projection) to (A (in_features, r), B (r, out_features)), float32 or float16.
        name: for people.
    """

    base: str
    fingerprint: str
    matrices: Mapping[tuple[int, str], tuple[NDArray[np.floating], NDArray[np.floating]]] = field(repr=False)
    name: str = ""


def load_adapter(path: Path | str) -> Adapter:
    """Read an adapter file: safetensors with `layers.{i}.{projection}.lora_A` and `.lora_B`, metadata `format`, `base`.

    Raises:
        AdapterError: the file is missing, damaged, or not an adapter.
    """
    path = Path(path)
    halves: dict[tuple[int, str], dict[str, NDArray[np.floating]]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                parts = key.split(".")
                if len(parts) != 4 or parts[0] != "layers" or not parts[1].isdecimal() or parts[3] not in _HALVES:
                    raise AdapterError(f"The adapter has a tensor that doesn't belong there: {path}, '{key}'.")
                halves.setdefault((int(parts[1]), parts[2]), {})[parts[3]] = file.get_tensor(key)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"The adapter can't be read: {path} ({error}). Export it again.") from None
    if metadata.get("format") != ADAPTER_FORMAT or "base" not in metadata:
        raise AdapterError(f"This is not an adapter of format '{ADAPTER_FORMAT}': {path}. Export it again.")
    matrices = {}
    for place, pair in halves.items():
        a, b = pair.get("lora_A"), pair.get("lora_B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise AdapterError(f"The adapter's matrices don't fit together: {path}, layer {place[0]}, {place[1]}.")
        matrices[place] = (a, b)
    return Adapter(metadata["base"], digest, matrices, metadata.get("name", path.stem))


_HALVES = ("lora_A", "lora_B")
