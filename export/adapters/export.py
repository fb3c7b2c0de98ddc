"""Converts trained PEFT adapters to a bundle's adapters, for one user or for a directory of users."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.store import ADAPTERS_DIRECTORY, AdapterStore
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.errors import CogenesisError
from edge_runtime.request import load_json, parse_context
from export.adapters.peft_files import CONFIG_NAME, read_peft_config, read_peft_matrices
from export.adapters.writer import AdapterWeights, encode_adapter
from export.errors import AdapterExportError
from export.model.locate import locate_model
from export.progress import Progress, silent

if TYPE_CHECKING:
    from edge_runtime.bundle.reader import Bundle
    from edge_runtime.context import PrivateContext

NOTE_NAME = "cogenesis.json"
LEARNED_NAME = "learned.json"
"""{"profile": str, "history": [{"title": str, "text": str}]}: texts that the guard keeps private for this adapter."""

_NOTE_FORMAT = "cogenesis-training/1"


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """An adapter in a bundle: its user, path and size in bytes; `unchanged` if the file was already the same."""

    user: str
    path: Path
    size: int
    unchanged: bool


@dataclass(frozen=True, slots=True)
class FailedAdapter:
    """A trained adapter that could not be exported: its directory and the error message."""

    directory: Path
    error: str


@dataclass(frozen=True, slots=True)
class _Training:
    """Facts about a training run that PEFT's own files lack: the user, the base model and the task."""

    user: str
    base: str
    base_name: str
    task: str


def export_adapter(
    peft: Path,
    bundle: Path | str,
    user: str | None = None,
    weights: AdapterWeights = "fp16",
    *,
    base: Path | str | None = None,
    learned: Path | None = None,
    force: bool = False,
) -> ExportedAdapter:
    """Put one trained adapter into a bundle.

    Args:
        peft: directory written by PEFT or `cogenesis adapter train`.
        bundle: a bundle of the adapter's base model, in any quantization.
        user: the adapter's user; None takes the user from the training note.
        weights: how the matrices are stored, see `export.adapters.writer.encode_adapter`.
        base: the adapter's base model, needed if the adapter has no training note.
        learned: JSON file with the profile and texts of the training, if not in the adapter; see `LEARNED_NAME`.
        force: replace the user's existing adapter.

    Raises:
        AdapterExportError: the adapter is not plain LoRA, has another base model, or does not fit.
        CogenesisError: the bundle or the base model can't be read, or the adapter can't be written.
    """
    return _Exporter(bundle, weights, base, force).export(peft, user, learned)


def export_adapters(
    root: Path,
    bundle: Path | str,
    weights: AdapterWeights = "fp16",
    *,
    base: Path | str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> tuple[list[ExportedAdapter], list[FailedAdapter]]:
    """Put every trained adapter in a directory into a bundle; if one can't be exported, the others still are.

    Args:
        root: directory with a PEFT directory for each user.
        bundle: see `export_adapter`.
        weights: see `export_adapter`.
        base: see `export_adapter`.
        force: replace users' existing adapters.
        progress: see `export.progress`.

    Returns:
        The exported adapters and the failed ones.

    Raises:
        AdapterExportError: there are no adapters in the directory.
        CogenesisError: the bundle can't be read.
    """
    directories = trained_adapters(root)
    if not directories:
        raise AdapterExportError(f"There are no PEFT adapters here: {root} (no {CONFIG_NAME}, nor below it).")
    exporter = _Exporter(bundle, weights, base, force)
    exported, failed = [], []
    for number, directory in enumerate(directories, start=1):
        try:
            exported.append(exporter.export(directory))
        except CogenesisError as error:
            failed.append(FailedAdapter(directory, str(error)))
        progress("Exporting adapters", number, len(directories))
    return exported, failed


def trained_adapters(root: Path) -> list[Path]:
    """List the PEFT directories in a directory, sorted."""
    return sorted(path.parent for path in root.glob(f"*/{CONFIG_NAME}"))


class _Exporter:
    """Holds the state that all exports into one bundle share."""

    def __init__(self, bundle: Path | str, weights: AdapterWeights, base: Path | str | None, force: bool) -> None:
        self._bundle: Bundle = open_bundle(bundle, verify=False)
        decoders = [spec for spec in self._bundle.manifest.decoders if spec.lora]
        if not decoders:
            raise AdapterExportError(
                f"This bundle takes no adapters, its graph is the portable one: {self._bundle.root}. "
                "Adapters need a model of the Llama family."
            )
        self._decoders = decoders
        self._store = AdapterStore(self._bundle.root / ADAPTERS_DIRECTORY, self._bundle.base)
        self._weights = weights
        self._force = force
        self._base = base
        self._base_sha256 = ""
        self._sources: dict[str, Path] = {}

    def export(self, peft: Path, user: str | None = None, learned: Path | None = None) -> ExportedAdapter:
        config = read_peft_config(peft)
        training = self._training(peft, config.base_name)
        user = user or training.user
        if not user:
            raise AdapterExportError(f"The adapter does not say whose it is: {peft}. Set `user`.")
        self._check_base(peft, training)
        # An adapter that fits only some of the bundle's runtimes would fail on a device.
        narrowest = min(self._decoders, key=lambda spec: len(spec.lora))
        matrices = read_peft_matrices(peft, config, narrowest)
        name = f"{user}, {training.task}" if training.task else user
        texts = _learned(peft, learned)
        adapter = Adapter(self._bundle.base, "", matrices, name, user, training.base_name, texts)
        content = encode_adapter(adapter, self._weights)
        if self._sources.setdefault(user, peft) != peft:
            raise AdapterExportError(f"User '{user}' has two trainings: {self._sources[user]} and {peft}. Remove one.")
        path = self._store.path(user)
        unchanged = path.is_file() and path.read_bytes() == content
        if not unchanged:
            self._store.install(content, replace=self._force)
        return ExportedAdapter(user, path, len(content), unchanged)

    def _training(self, peft: Path, base_name: str) -> _Training:
        path = peft / NOTE_NAME
        try:
            body: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            return _Training("", self._named_base(peft), base_name, "")
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterExportError(
                f"The note of the training can't be read: {path} ({error}). Train again."
            ) from None
        note = body if isinstance(body, dict) else {}
        base = note["base"] if isinstance(note.get("base"), dict) else {}
        fields = note.get("user"), base.get("sha256"), base.get("name"), note.get("task", "")
        texts = [field for field in fields if isinstance(field, str)]
        if note.get("format") != _NOTE_FORMAT or len(texts) != len(fields):
            raise AdapterExportError(
                f"The note of the training lacks its format '{_NOTE_FORMAT}', user or base: {path}. Train again."
            )
        return _Training(*texts)

    def _named_base(self, peft: Path) -> str:
        """Return the digest of the model given as `base`; computed once."""
        if self._base is None:
            raise AdapterExportError(
                f"The adapter does not say which weights it was trained on: {peft} (no {NOTE_NAME}). "
                "Set `base` to the model directory that it was trained on."
            )
        if not self._base_sha256:
            self._base_sha256 = _identity(locate_model(self._base))
        return self._base_sha256

    def _check_base(self, peft: Path, training: _Training) -> None:
        source = self._bundle.manifest.source
        if training.base != source.sha256:
            raise AdapterExportError(
                f"The adapter was trained on another base model ({training.base_name or 'unnamed'}, "
                f"{training.base[:12]}) than the bundle was made from ({source.name}, {source.sha256[:12]}): {peft}. "
                "Train it on the model that the bundle was made from, or on what `cogenesis export hf` writes of it."
            )


def _learned(peft: Path, given: Path | None) -> PrivateContext | None:
    """Read the texts that an adapter was trained on; None if there is no file."""
    path = given or peft / LEARNED_NAME
    if given is None and not path.exists():
        return None
    return parse_context(load_json(path), path)


def _identity(model: Path) -> str:
    """Compute the digest of a model's weights, as the manifest of a bundle made from it records it."""
    if model.is_file():
        from edge_runtime.bundle.reader import sha256_of

        return sha256_of(model)
    from export.model.hf_source import hf_provenance

    return hf_provenance(model).sha256
