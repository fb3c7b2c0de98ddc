"""What a directory holds for retrieval beside words and dates: text encoders by name, and at most one selector."""

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
"""Where a bundle has it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class RetrievalKit:
    """Encoders, loaded when first needed.

    Attributes:
        root: the directory, for messages; None where there is none.
        encoders: directory of each encoder by its name.
        selector_path: the selector's directory.
    """

    root: Path | None = None
    encoders: dict[str, Path] = field(default_factory=dict)
    selector_path: Path | None = None
    _loaded: dict[str, TextEncoder] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every retriever that can be asked for."""
        fused = (HYBRID, MIXED) if self.encoders else ()
        return (*WITHOUT_ENCODER, *self.encoders, *fused, *((AUTO,) if self.selector_path else ()))

    def encoder(self, name: str) -> TextEncoder:
        """The encoder of this name.

        Raises:
            RequestError: there is none.
            BundleError: it is damaged.
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
        """The selector.

        Raises:
            RequestError: there is none.
            BundleError: it is damaged.
        """
        if self.selector_path is None:
            place = "Give a directory for retrieval that has one" if self.root is None else f"Put one into {self.root}"
            raise RequestError(
                f"There is no selector for the retriever '{AUTO}', only: {', '.join(self.names)}. {place}, made by "
                "`cogenesis rspg export`."
            )
        return Selector.load(self.selector_path)


def open_retrieval_kit(root: Path | str | None) -> RetrievalKit:
    """See what a directory holds.

    Args:
        root: an encoder's directory, or one whose subdirectories are encoders and a selector; None: nothing.

    Raises:
        BundleError: there is no such directory, it holds neither, or two selectors.
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
    """Where a bundle has the encoder of this name.

    Raises:
        RequestError: no encoder can have that name.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise RequestError(
            f"An encoder can't be called '{name}'. Use at most 64 letters, digits, '.', '_' and '-', and none of the "
            f"names {', '.join(RESERVED)}."
        )
    return bundle / RETRIEVAL_DIRECTORY / name


def bundle_retrieval(bundle: Path) -> Path | None:
    """A bundle's directory for retrieval, None where it has none."""
    directory = bundle / RETRIEVAL_DIRECTORY
    return directory if directory.is_dir() else None
