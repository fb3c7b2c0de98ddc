"""Opens a retrieval directory: it holds text encoders by name, and at most one selector."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.errors import BundleError, RequestError
from edge_runtime.retrieval.names import AUTO, DENSE, HYBRID, MIXED, RESERVED, WITHOUT_ENCODER
from edge_runtime.retrieval.selector import Selector
from edge_runtime.retrieval.selector_card import SELECTOR_NAME
from edge_runtime.retrieval.text_encoder import ENCODER_NAME, TextEncoder

RETRIEVAL_DIRECTORY = "retrieval"
"""Name of the retrieval directory in a bundle."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class RetrievalKit:
    """Encoders and a selector, loaded on first use.

    Attributes:
        root: the directory, for messages; None without a directory.
        encoders: each encoder's directory by name.
        selector_path: the selector's directory, or None.
    """

    root: Path | None = None
    encoders: dict[str, Path] = field(default_factory=dict)
    selector_path: Path | None = None
    _loaded: dict[str, TextEncoder] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all available retrievers."""
        fused = (HYBRID, MIXED) if self.encoders else ()
        return (*WITHOUT_ENCODER, *self.encoders, *fused, *((AUTO,) if self.selector_path else ()))

    def encoder(self, name: str) -> TextEncoder:
        """Return the encoder with this name.

        Raises:
            RequestError: there is no such encoder.
            BundleError: the encoder is damaged.
        """
        if name == DENSE and DENSE not in self.encoders and len(self.encoders) == 1:
            [name] = self.encoders
        if name not in self.encoders:
            place = "Give a directory for retrieval" if self.root is None else f"Put an encoder into {self.root}"
            raise RequestError(
                f"There is no retriever '{name}', only: {', '.join(self.names)}. {place}, made by `cogenesis export "
                "encoder`."
            )
        if name not in self._loaded:
            self._loaded[name] = TextEncoder.load(self.encoders[name])
        return self._loaded[name]

    def selector(self) -> Selector:
        """Load the selector.

        Raises:
            RequestError: there is no selector.
            BundleError: the selector is damaged.
        """
        if self.selector_path is None:
            place = "Give a directory for retrieval that has one" if self.root is None else f"Put one into {self.root}"
            raise RequestError(
                f"There is no selector for the retriever '{AUTO}', only: {', '.join(self.names)}. {place}, made by "
                "`cogenesis rspg export`."
            )
        return Selector.load(self.selector_path)


def open_retrieval_kit(root: Path | str | None) -> RetrievalKit:
    """Find the encoders and the selector in a directory.

    Args:
        root: an encoder's directory, or a directory of encoders and a selector; None gives an empty kit.

    Raises:
        BundleError: the directory is missing, holds neither encoder nor selector, or holds two selectors.
    """
    if root is None:
        return RetrievalKit()
    root = Path(root)
    try:
        inside = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise BundleError(
            f"The directory for retrieval can't be read: {root} ({error.strerror}). Check its name."
        ) from None
    if (root / ENCODER_NAME).is_file():
        return RetrievalKit(root, {DENSE: root})
    encoders = {path.name: path for path in inside if (path / ENCODER_NAME).is_file()}
    selectors = [path for path in (root, *inside) if (path / SELECTOR_NAME).is_file()]
    if len(selectors) > 1:
        raise BundleError(f"There are two selectors: {selectors[0]} and {selectors[1]}. Remove one.")
    if not encoders and not selectors:
        raise BundleError(
            f"There is nothing for retrieval here: {root} (no {ENCODER_NAME}, no {SELECTOR_NAME}). Make an encoder "
            "with `cogenesis export encoder`."
        )
    return RetrievalKit(root, encoders, selectors[0] if selectors else None)


def retriever_directory(bundle: Path, name: str) -> Path:
    """Return the directory of the encoder with this name in a bundle.

    Raises:
        RequestError: the name is not a valid encoder name.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise RequestError(
            f"An encoder can't be called '{name}'. Use at most 64 letters, digits, '.', '_' and '-', and none of the "
            f"names {', '.join(RESERVED)}."
        )
    return bundle / RETRIEVAL_DIRECTORY / name


def bundle_retrieval(bundle: Path) -> Path | None:
    """Return a bundle's retrieval directory, or None if it has none."""
    directory = bundle / RETRIEVAL_DIRECTORY
    return directory if directory.is_dir() else None
