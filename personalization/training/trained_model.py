"""A trained model's directory: made once, and left alone by a run that would make the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from edge_runtime.errors import WriteError
from edge_runtime.files.staged_directory import staged_directory
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
        report: how the training went.
        kept: it was there already.
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

    What an interrupted run leaves is in `.OUT.training` beside `out`, and is gone on with.

    Args:
        out: the directory; it appears complete or not at all.
        objective: what for.
        settings: how.
        team: with whom.
        origin: what else the result depends on, as JSON.
        save: writes the module into a directory.
        force: replace what was trained otherwise, and begin anew where an unfinished run was another.
        progress: called after each step.
        start: see `fine_tune`; what it does follows from `origin` and the module.

    Raises:
        WriteError: something else is in the place of `out`, or it can't be written.
        SettingsError: an unfinished run was another, and `force` is not set.
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
        raise WriteError(f"There is one that was trained otherwise: {out}. Pass --force to replace it.")
    if card is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WriteError(f"Something else is in this place: {out}. Choose another, it is not replaced.")
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
    """Write a language model as a directory that transformers loads, with the tokenizer of the one it came from.

    Args:
        model: of transformers.
        source: directory that it came from.
        directory: where to.
    """
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(directory)
    for file in directory.glob("*.safetensors"):
        file.chmod((directory.stat().st_mode & 0o666) | 0o600)  # safetensors makes it private


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights, in lower-case hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _card(directory: Path) -> dict[str, Any] | None:
    """What is noted of a training in its directory; None where nothing is, or nothing readable."""
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
