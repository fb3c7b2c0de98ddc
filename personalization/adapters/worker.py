"""The worker that trains users one after the other: one a process, holding the base. Importing it loads no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from personalization.adapters.settings import AdapterSettings
from personalization.adapters.trained_adapter import BaseIdentity, TrainingReport, save_adapter
from personalization.models.libraries import prepare_libraries
from personalization.users.data import UserData


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is made of; it travels to other processes.

    Attributes:
        model: the base's directory, the same on every machine.
        base: its identity, hashed once.
        out: where users' directories go, the same on every machine.
        settings: of the training.
    """

    model: Path
    base: BaseIdentity
    out: Path
    settings: AdapterSettings


@dataclass(frozen=True, slots=True)
class TrainedUser:
    """A user whose adapter was trained and written: how it went, where it is, and how long it took."""

    report: TrainingReport
    directory: Path
    seconds: float


class AdapterTrainer:
    """Trains users' adapters and writes them; what it gives does not depend on whom it trained before."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Load the base.

        Raises:
            CogenesisError: it can't be loaded, or is no model for this.
        """
        prepare_libraries()
        from personalization.models.base_model import Base

        self._spec = spec
        self._base = Base(spec.model, spec.settings.threads)

    def __call__(self, job: UserData) -> TrainedUser:
        """Train one user.

        Raises:
            PersonalizationError: the user's data can't be trained on.
            WriteError: the adapter can't be written.
        """
        from personalization.adapters.train import train_user

        began = time.monotonic()
        adapter = train_user(self._base, job, self._spec.settings)
        directory = save_adapter(self._spec.out, adapter, job, self._spec.base, self._spec.settings)
        return TrainedUser(adapter.report, directory, time.monotonic() - began)
