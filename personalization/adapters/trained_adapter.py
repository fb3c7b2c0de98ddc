"""A user's trained adapter as a directory in PEFT's format, with a note of what it was trained on and how it went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.adapters.store import directory_name
from edge_runtime.files.staged_directory import staged_directory
from personalization.errors import TrainingError
from personalization.users.data import context_of

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

    from personalization.adapters.settings import AdapterSettings
    from personalization.users.data import UserData

FORMAT = "cogenesis-training/1"
CARD_NAME = "cogenesis.json"
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
LEARNED_NAME = "learned.json"


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """What adapters are bound to: the digest of the base's weights, and a name for people."""

    sha256: str
    name: str


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """How a training went.

    Attributes:
        examples: pairs that were trained on.
        held_out: pairs that told when to stop.
        tokens: of the answers that were trained on.
        cut: pairs that were too long.
        skipped: items of the file that made no pair.
        steps: optimizer steps that were made.
        kept_step: after how many of them the adapter was as it is kept.
        judged_by: "held-out" pairs or those of the "training": what the losses below are of.
        before, after: mean negative log-likelihood of an answer token with the base alone and with the adapter, nats.
    """

    examples: int
    held_out: int
    tokens: int
    cut: int
    skipped: int
    steps: int
    kept_step: int
    judged_by: str
    before: float
    after: float


@dataclass(frozen=True, eq=False, slots=True)
class TrainedAdapter:
    """What training gives.

    Attributes:
        config: PEFT's configuration, as JSON.
        state: matrices by PEFT's names.
        report: how it went.
    """

    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor] = field(repr=False)
    report: TrainingReport


def save_adapter(
    out: Path, adapter: TrainedAdapter, data: UserData, base: BaseIdentity, settings: AdapterSettings
) -> Path:
    """Write a user's directory, at once or not at all; one of an earlier training is replaced.

    The bytes depend on the arguments alone, not on time or machine.

    Returns:
        The directory.

    Raises:
        WriteError: it can't be written, or something else is in its place.
    """
    from safetensors.torch import save_file

    directory = out / directory_name(data.user)
    report = asdict(adapter.report)
    card = {
        "format": FORMAT,
        "user": data.user,
        "base": asdict(base),
        "task": data.task,
        "data_sha256": data.digest,
        "settings": settings.document(),
        "loss": {name: report.pop(name) for name in ("before", "after", "judged_by")},
        **report,
    }
    with staged_directory(directory, replaceable=is_training_directory, replace=True) as staging:
        save_file(dict(adapter.state), staging / WEIGHTS_NAME, metadata={"format": "pt"})
        (staging / WEIGHTS_NAME).chmod((staging.stat().st_mode & 0o666) | 0o600)  # safetensors makes it private
        config = {**adapter.config, "base_model_name_or_path": base.name}
        _write_json(staging / CONFIG_NAME, config)
        _write_json(staging / CARD_NAME, card)
        _write_json(staging / LEARNED_NAME, asdict(context_of(data.profile, data.pairs)))
    return directory


def is_training_directory(path: Path) -> bool:
    """Whether a directory holds an adapter that we trained, in any condition."""
    try:
        return read_card(path) is not None
    except TrainingError:
        return True


def read_card(directory: Path) -> dict[str, Any] | None:
    """What a user's directory says of its training; None where there is none.

    Raises:
        TrainingError: the note is damaged, or of another version.
    """
    path = directory / CARD_NAME
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"The note of a training can't be read: {path} ({error}). Delete its directory.") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise TrainingError(f"This is not a note of a training of format '{FORMAT}': {path}. Delete its directory.")
    return body


def load_adapter(directory: Path, base: str) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """PEFT's configuration and matrices of a user's directory.

    Args:
        directory: of the user.
        base: digest of the weights that the adapter must have been trained on.

    Raises:
        TrainingError: there is no adapter, it is damaged, or it belongs to another base.
    """
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_card(directory)
    if card is None:
        raise TrainingError(f"There is no adapter of this user: {directory}. Train one with `cogenesis adapter train`.")
    if card.get("base", {}).get("sha256") != base:
        raise TrainingError(f"The adapter was trained on another base model: {directory}. Name that one with --model.")
    try:
        fields = json.loads((directory / CONFIG_NAME).read_bytes())
        state = load_file(directory / WEIGHTS_NAME)
        return LoraConfig(**{name: value for name, value in fields.items() if name != "peft_type"}), state
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TrainingError(f"The adapter can't be read: {directory} ({error}). Train it again with --force.") from None


def report_of(card: Mapping[str, Any]) -> TrainingReport:
    """How the training went that a directory's note is of.

    Raises:
        KeyError, TypeError: the note lacks something.
    """
    fields = {**card, **card["loss"]}
    return TrainingReport(**{name: fields[name] for name in TrainingReport.__slots__})


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
