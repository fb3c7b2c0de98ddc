"""Fine-tunes the device's model on references, with the prompts that it will see: with context, without, or a sketch.

As with CoGenesis' small models (Zhang et al., 2024, section 4.2), only the answer counts in the loss.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from export.progress import Progress
from personalization.adapters.lora_config import lora_config
from personalization.adapters.settings import AdapterSettings
from personalization.adapters.train import config_document
from personalization.adapters.trained_adapter import CONFIG_NAME, WEIGHTS_NAME
from personalization.collab.records.records import CollabRecord, Skipped
from personalization.collab.records.shown import Shown
from personalization.errors import DataError, SettingsError, TrainingError
from personalization.models.base_model import Base
from personalization.models.examples import Example
from personalization.models.precision import Precision, computing_in
from personalization.training.batches import packs_of
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from personalization.training.trained_model import Trained, save_model, train_into, weights_sha256
from personalization.users.data import Pair

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What to tune, and how.

    Attributes:
        shown: contents of the prompts.
        max_length: maximum number of tokens in prompt and answer; history that does not fit is left out, as on the
            device.
        pack_tokens: maximum number of tokens in a pack of examples, which passes through the model as one row.
        lora: settings of the adapter to train; None to train all weights.
        checkpointing: recompute the layers' inner states instead of keeping them in memory.
        precision: precision of the computation.
        settings: settings of the training; its examples are packs.
    """

    shown: Shown
    max_length: int
    pack_tokens: int
    lora: AdapterSettings | None
    checkpointing: bool
    precision: Precision
    settings: TuningSettings


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result of a tuning.

    Attributes:
        trained: the result; its losses and gains are nats per answer token.
        examples: number of training records.
        judges: number of records that select the best epoch.
        left_out: skipped records with the reason: they lack contents of the prompts, or are too long even without
            history.
        shortened: number of examples with a truncated task or answer, or with incomplete history.
        packs: number of packs per epoch.
    """

    trained: Trained
    examples: int
    judges: int
    left_out: tuple[Skipped, ...]
    shortened: int
    packs: int


class AnswerPacks:
    """Makes references more likely, in packs; see `personalization.training.fine_tuning.Objective`.

    A pack's loss is the sum over its tokens divided by the mean number of tokens per pack, so all tokens weigh the
    same.
    """

    def __init__(
        self,
        base: Base,
        module: torch.nn.Module,
        training: Sequence[Sequence[Example]],
        judging: Sequence[Sequence[Example]],
        precision: Precision,
    ) -> None:
        self.module = module
        self._base, self._training, self._judging, self._precision = base, training, judging, precision
        self.count, self.held_out = len(training), len(judging)
        self._mean_tokens, self._mean_judged = mean_answer_tokens(training), mean_answer_tokens(judging)

    def loss(self, index: int, draw: random.Random) -> torch.Tensor:  # noqa: ARG002 (protocol)
        """See `Objective.loss`."""
        return self._nats(self._training[index]) / self._mean_tokens

    def gain(self, index: int) -> float:
        """See `Objective.gain`."""
        return -float(self._nats(self._judging[index])) / self._mean_judged

    def _nats(self, pack: Sequence[Example]) -> torch.Tensor:
        with computing_in(self._precision, self._base.device):
            return self._base.packed_losses(pack).sum()


class AdapterOf(torch.nn.Module):
    """A base's adapter as a separate module: only the adapter is saved in checkpoints and kept by judging."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.matrices = torch.nn.ParameterList(base.parameters)
        self._base = base

    def train(self, mode: bool = True) -> AdapterOf:
        """Set the training mode here and in the base, which holds the dropout."""
        self._base.train(mode)
        super().train(mode)
        return self


def mean_answer_tokens(packs: Sequence[Sequence[Example]]) -> float:
    """Mean number of answer tokens per pack; 0 if there is no pack."""
    tokens = sum(len(example.answer) for pack in packs for example in pack)
    return tokens / len(packs) if packs else 0.0


def tune_model(
    model: Path,
    out: Path,
    training: Sequence[CollabRecord],
    judging: Sequence[CollabRecord],
    plan: TuningPlan,
    team: Team,
    *,
    force: bool,
    progress: Progress,
) -> Tuned:
    """Fine-tune a model on records and write it as a model directory, or its adapter in PEFT's format.

    Args:
        model: directory of the model.
        out: directory for the tuned model or the adapter.
        training: records to learn from.
        judging: other records, whose likelihood selects the best epoch; without any, the last epoch is kept.
        plan: what to tune, and how.
        team: the processes that train together.
        force: replace a result that was trained with other settings.
        progress: called after each step.

    Raises:
        ModelError: the model can't be loaded.
        WriteError: `out` can't be written.
        PersonalizationError: no record has all contents of the prompts, the lengths don't fit the model, or see
            `train_into`.
    """
    base = Base(model, plan.settings.threads, team.device)
    if base.context_length is not None and plan.max_length > base.context_length:
        raise SettingsError(
            f"The model's context has {base.context_length:,} tokens, fewer than `max_length` {plan.max_length:,}: "
            f"{model}. Lower it."
        )
    left_out: list[Skipped] = []
    examples, held_out = (_examples(base, records, plan, left_out) for records in (training, judging))
    if not examples or (judging and not held_out):
        raise DataError(
            f"No record can be used, the first because {left_out[0].where} {left_out[0].reason}. Give other records."
        )
    room = plan.pack_tokens if base.packs else 0
    packs, judge_packs = packs_of(examples, room), packs_of(held_out, room)
    origin: dict[str, Any] = {
        "kind": "collab tune",
        "shown": plan.shown,
        "data": _digest(packs),
        "judging_data": _digest(judge_packs),
        "precision": plan.precision,
        "lora": None if plan.lora is None else plan.lora.document(),
    }
    if plan.checkpointing:
        # Reentrant checkpointing with frozen embeddings would stop the gradients before they reach an adapter.
        base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with ExitStack() as attached:
        if plan.lora is None:
            base.train_whole()
            module, save = base.model, partial(save_model, base.model, base.path)
        else:
            origin["base"] = weights_sha256(base.model)
            config = lora_config(base, plan.lora)
            attached.enter_context(base.new_adapter(config, plan.settings.seed))
            module, save = AdapterOf(base), partial(_save_adapter, base, config)
        objective = AnswerPacks(base, module, packs, judge_packs, plan.precision)
        trained = train_into(out, objective, plan.settings, team, origin, save, force=force, progress=progress)
    return Tuned(
        trained,
        examples=len(examples),
        judges=len(held_out),
        left_out=tuple(left_out),
        shortened=sum(example.cut or example.dropped > 0 for example in (*examples, *held_out)),
        packs=len(packs),
    )


def _examples(base: Base, records: Sequence[CollabRecord], plan: TuningPlan, left_out: list[Skipped]) -> list[Example]:
    """Return examples of the usable records; the others go to `left_out`."""
    examples = []
    for record in records:
        try:
            examples.append(_example(base, record, plan))
        except DataError as error:
            left_out.append(Skipped(f"record '{record.id}'", str(error)))
    return examples


def _example(base: Base, record: CollabRecord, plan: TuningPlan) -> Example:
    if plan.shown is not Shown.WITHOUT and record.context is None:
        raise DataError("has no context")
    if plan.shown is Shown.SKETCH and record.sketch is None:
        raise DataError("has no sketch: make it with `cogenesis collab sketch`")
    context = None if plan.shown is Shown.WITHOUT else record.device_context
    outline = record.sketch if plan.shown is Shown.SKETCH else None
    pair = Pair(record.instruction.text, record.reference)
    try:
        return base.writer.write(pair, context, plan.max_length, outline)
    except TrainingError:
        raise DataError(f"does not fit into {plan.max_length:,} tokens (`max_length`), even without history") from None


def _save_adapter(base: Base, config: LoraConfig, directory: Path) -> None:
    save_file(base.state(), directory / WEIGHTS_NAME, metadata={"format": "pt"})
    (directory / WEIGHTS_NAME).chmod((directory.stat().st_mode & 0o666) | 0o600)  # safetensors makes it private
    fields = {**config_document(config), "base_model_name_or_path": base.path.name}
    (directory / CONFIG_NAME).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _digest(packs: Sequence[Sequence[Example]]) -> str:
    """SHA-256 over all packs' tokens, in lower-case hex."""
    body = [[asdict(example) for example in pack] for pack in packs]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
