"""Turns trained adapters, as PEFT saves them, into adapters of a bundle: one user's, or a directory of many users'."""

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
"""{"profile": str, "history": [{"title": str, "text": str}]}: what the guard keeps from the cloud with this adapter."""

_NOTE_FORMAT = "cogenesis-training/1"


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """An adapter in a bundle: whose, where, how many bytes; `unchanged` if the very same was there already."""

    user: str
    path: Path
    size: int
    unchanged: bool


@dataclass(frozen=True, slots=True)
class FailedAdapter:
    """A trained adapter that could not be exported: its directory, and why."""

    directory: Path
    error: str


@dataclass(frozen=True, slots=True)
class _Training:
    """What is known of a training beside PEFT's own files: whose it was, on which base, for what."""

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
        peft: directory that PEFT, or `cogenesis adapter train`, has written.
        bundle: a bundle of the model that it was trained on, in any quantization.
        user: whose it is; None: whose the training says.
        weights: how its matrices are stored, see `export.adapters.writer.encode_adapter`.
        base: the model that it was trained on, for adapters that don't say it themselves.
        learned: JSON file with the profile and texts that it was trained on, for the same; see `LEARNED_NAME`.
        force: replace the user's present adapter.

    Raises:
        AdapterExportError: it is no plain LoRA adapter, of another base, or does not fit.
        CogenesisError: the bundle, or the base model, can't be read, or the adapter not be written.
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
    """Put every trained adapter below a directory into a bundle; one that can't be exported does not stop the others.

    Args:
        root: directory with a PEFT directory for each user.
        bundle: see `export_adapter`.
        weights: see there.
        base: see there.
        force: replace users' present adapters.
        progress: see `export.progress`.

    Returns:
        Those exported and those that failed.

    Raises:
        AdapterExportError: there is none.
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
    """The PEFT directories in a directory, sorted."""
    return sorted(path.parent for path in root.glob(f"*/{CONFIG_NAME}"))


class _Exporter:
    """What exports of many adapters into one bundle share."""

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
            raise AdapterExportError(f"The adapter does not say whose it is: {peft}. Pass --user ID.")
        self._check_base(peft, training)
        # One that only some of the bundle's runtimes could use would fail on a device.
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
        """Identity of the model that --base names; computed once."""
        if self._base is None:
            raise AdapterExportError(
                f"The adapter does not say which weights it was trained on: {peft} (no {NOTE_NAME}). "
                "Pass --base with the model directory that it was trained on."
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
    """The texts that an adapter was trained on; None where nobody says."""
    path = given or peft / LEARNED_NAME
    if given is None and not path.exists():
        return None
    return parse_context(load_json(path), path)


def _identity(model: Path) -> str:
    """Digest of a model's weights, as a bundle that is made of it has it."""
    if model.is_file():
        from edge_runtime.bundle.reader import sha256_of

        return sha256_of(model)
    from export.model.hf_source import hf_provenance

    return hf_provenance(model).sha256
