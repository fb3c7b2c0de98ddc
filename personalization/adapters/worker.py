"""Trains users one after another in a worker process that holds the base. Importing this file loads no torch."""

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
    """The parameters of a worker; they are sent to other processes.

    Attributes:
        model: directory of the base model, the same path on every machine.
        base: identity of the base, hashed once.
        out: directory for the users' directories, the same path on every machine.
        settings: settings of the training.
    """

    model: Path
    base: BaseIdentity
    out: Path
    settings: AdapterSettings


@dataclass(frozen=True, slots=True)
class TrainedUser:
    """A user whose adapter was trained and written: the report, its directory, and the duration."""

    report: TrainingReport
    directory: Path
    seconds: float


class AdapterTrainer:
    """Trains users' adapters and writes them; each result is independent of the users before it."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Load the base.

        Raises:
            CogenesisError: the base can't be loaded or is not a supported model.
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
