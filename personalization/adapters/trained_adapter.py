"""A trained adapter as a directory in PEFT's format, with a card that records its data, settings and losses."""

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
    """The base that adapters are bound to: the digest of its weights, and a readable name."""

    sha256: str
    name: str


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """How a training went.

    Attributes:
        examples: number of training pairs.
        held_out: number of held-out pairs, used for early stopping.
        tokens: number of answer tokens in the training pairs.
        cut: number of pairs that were truncated.
        skipped: number of items in the file that gave no pair.
        steps: number of optimizer steps.
        kept_step: number of steps after which the adapter was kept.
        judged_by: the pairs that the losses below are measured on, "held-out" or "training".
        before, after: mean negative log-likelihood per answer token in nats, with the base alone and with the adapter.
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
    """The result of a training.

    Attributes:
        config: PEFT's configuration, as JSON.
        state: matrices by PEFT's names.
        report: how the training went.
    """

    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor] = field(repr=False)
    report: TrainingReport


def save_adapter(
    out: Path, adapter: TrainedAdapter, data: UserData, base: BaseIdentity, settings: AdapterSettings
) -> Path:
    """Write a user's directory atomically, replacing an earlier training.

    The bytes depend only on the arguments, not on time or machine.

    Returns:
        The directory.

    Raises:
        WriteError: the directory can't be written, or something else has its name.
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
    """Whether a directory contains an adapter that we trained, intact or damaged."""
    try:
        return read_card(path) is not None
    except TrainingError:
        return True


def read_card(directory: Path) -> dict[str, Any] | None:
    """Return the training card of a user's directory, or None if there is none.

    Raises:
        TrainingError: the card is damaged or of another version.
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
    """Load PEFT's configuration and matrices from a user's directory.

    Args:
        directory: the user's directory.
        base: digest of the weights that the adapter must have been trained on.

    Raises:
        TrainingError: there is no adapter, or it is damaged or belongs to another base.
    """
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_card(directory)
    if card is None:
        raise TrainingError(f"There is no adapter of this user: {directory}. Train one with `cogenesis adapter train`.")
    if card.get("base", {}).get("sha256") != base:
        raise TrainingError(f"The adapter was trained on another base model: {directory}. Use that model.")
    try:
        fields = json.loads((directory / CONFIG_NAME).read_bytes())
        state = load_file(directory / WEIGHTS_NAME)
        return LoraConfig(**{name: value for name, value in fields.items() if name != "peft_type"}), state
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"The adapter can't be read: {directory} ({error}). Delete it and train it again."
        ) from None


def report_of(card: Mapping[str, Any]) -> TrainingReport:
    """Return the training report that a card contains.

    Raises:
        KeyError, TypeError: the card is incomplete.
    """
    fields = {**card, **card["loss"]}
    return TrainingReport(**{name: fields[name] for name in TrainingReport.__slots__})


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
