"""Writes a trained model's directory once; a run with the same inputs reuses it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from edge_runtime.errors import WriteError
from edge_runtime.files.staged_directory import staged_directory
from export.model.hf_tokenizer import TOKENIZER_FILES, HFTokenizerFiles
from export.progress import Progress
from personalization.errors import TrainingError
from personalization.jobs.interrupts import terminated_as_interrupt
from personalization.training.data_parallel import Team
from personalization.training.fine_tuning import Objective, TuningReport, fine_tune
from personalization.training.settings import TuningSettings

CARD_NAME = "training.json"
FORMAT = "cogenesis-tuning/1"


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model.

    Attributes:
        path: its directory.
        report: report of the training.
        kept: whether it existed already.
    """

    path: Path
    report: TuningReport
    kept: bool


def train_into(
    out: Path,
    objective: Objective,
    settings: TuningSettings,
    team: Team,
    origin: Mapping[str, Any],
    save: Callable[[Path], None],
    *,
    force: bool,
    progress: Progress,
    start: Callable[[], None] | None = None,
) -> Trained:
    """Train a module and write it, unless it was written before.

    An interrupted run leaves its state in `.OUT.training` beside `out`, and is resumed from there.

    Args:
        out: the directory, written atomically.
        objective: what to train.
        settings: how to train.
        team: the processes that train together.
        origin: everything else that the result depends on, as JSON.
        save: writes the module into a directory.
        force: replace a result that was trained with other settings, and start over if an unfinished run differs.
        progress: called after each step.
        start: see `fine_tune`; its effect depends only on `origin` and the module.

    Raises:
        WriteError: `out` has other content or can't be written.
        SettingsError: an unfinished run has other settings, and `force` is not set.
        TrainingError: see `fine_tune`.
    """
    described = {"settings": settings.document(), **origin}
    identity = hashlib.sha256(
        f"{json.dumps(described, sort_keys=True)}\0{weights_sha256(objective.module)}".encode()
    ).hexdigest()
    card, state = _card(out), out.with_name(f".{out.name}.training")
    if card is not None and card["identity"] == identity:
        if team.leads:
            state.unlink(missing_ok=True)
        return Trained(out, _report(card, out), kept=True)
    if card is not None and not force:
        raise WriteError(f"There is a model that was trained otherwise: {out}. Set `force` to replace it.")
    if card is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WriteError(f"Something else is in this place and is not replaced: {out}. Choose another place.")
    with terminated_as_interrupt():
        report = fine_tune(objective, settings, team, state, identity, force=force, progress=progress, start=start)
        if team.leads:
            with staged_directory(out, replaceable=lambda path: _card(path) is not None, replace=force) as directory:
                save(directory)
                body = {"format": FORMAT, "identity": identity, **described, "report": asdict(report)}
                (directory / CARD_NAME).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
            state.unlink(missing_ok=True)
        team.wait()
    return Trained(out, report, kept=False)


def save_model(model: Any, source: Path, directory: Path) -> None:
    """Write a language model as a directory that transformers can load, with the tokenizer of its source.

    Args:
        model: the transformers model.
        source: directory that the model was loaded from.
        directory: directory to write to.
    """
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if not (directory / "tokenizer.json").is_file():
        HFTokenizerFiles(source).fast_tokenizer().save_pretrained(directory)
    for file in directory.glob("*.safetensors"):
        file.chmod((directory.stat().st_mode & 0o666) | 0o600)  # safetensors makes it private


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and values of all weights, in lower-case hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _card(directory: Path) -> dict[str, Any] | None:
    """Return the training card in a directory; None if there is none or it can't be read."""
    try:
        body = json.loads((directory / CARD_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    known = isinstance(body, dict) and body.get("format") == FORMAT and isinstance(body.get("identity"), str)
    return body if known else None


def _report(card: Mapping[str, Any], directory: Path) -> TuningReport:
    try:
        noted = card["report"]
        losses, gains, of_steps = (tuple(noted[name]) for name in ("losses", "gains", "step_losses"))
        return TuningReport(noted["steps"], losses, gains, noted["kept_epoch"], of_steps)
    except (KeyError, TypeError):
        raise TrainingError(
            f"The note of the training is damaged: {directory / CARD_NAME}. Remove the directory to train again."
        ) from None
