"""Trains an encoder on an objective, in one process or several; a run that was killed goes on to the same bits."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from edge_runtime.files.staged_directory import write_error
from export.progress import Progress
from personalization.errors import SettingsError, TrainingError
from personalization.training.batches import rate_factor, steps_of_epoch
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings


class Objective(Protocol):
    """What a module is trained for, and what tells how good it is.

    Attributes:
        module: with the parameters that are trained.
        count: examples to train on.
        held_out: examples to judge by, 0 for none.
    """

    module: torch.nn.Module
    count: int
    held_out: int

    def loss(self, index: int, draw: random.Random) -> torch.Tensor:
        """() loss on an example to train on; what is drawn depends on `draw` alone."""

    def gain(self, index: int) -> float:
        """What the module's choice for an example to judge by is worth; higher is better."""


@dataclass(frozen=True, slots=True)
class TuningReport:
    """How a training went.

    Attributes:
        steps: optimizer steps.
        losses: mean loss of each epoch.
        gains: mean gain on what judges, before the first epoch and after each; empty where nothing judges.
        kept_epoch: after which epoch the module is kept: the last, or where something judges the first with the highest
            gain; 0 is the module as it was.
        step_losses: mean loss of each step.
    """

    steps: int
    losses: tuple[float, ...]
    gains: tuple[float, ...]
    kept_epoch: int
    step_losses: tuple[float, ...]


def fine_tune(
    objective: Objective,
    settings: TuningSettings,
    team: Team,
    state_file: Path,
    identity: str,
    *,
    force: bool,
    progress: Progress,
    start: Callable[[], None] | None = None,
) -> TuningReport:
    """Train the objective's module in place, with AdamW.

    Every random choice follows from the seed, the epoch and the example. So an interrupted run that is started again
    gives the same bits, and another number of processes others only by the rounding of sums.

    Args:
        objective: what for.
        settings: how.
        team: with whom.
        state_file: where the run is saved now and then; removing it is the caller's part, once the module is safe.
        identity: of all that the result depends on.
        force: begin anew where the state file is of another run.
        progress: called after each step.
        start: called first, unless an earlier run is gone on with; it may set the module's weights.

    Raises:
        SettingsError: the state file is of another run, and `force` is not set.
        TrainingError: a gradient is no finite number, or the state file is damaged.
        WriteError: the state can't be saved.
    """
    # Of CUDA's matrix products; read when they are first made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(settings.threads)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        run = _Run(objective, settings, team, state_file, identity, progress)
        if not run.resume(force) and start is not None:
            start()
        return run.train()
    finally:
        torch.use_deterministic_algorithms(before)
        objective.module.eval()


class _Run:
    """A training and where it stands."""

    def __init__(
        self,
        objective: Objective,
        settings: TuningSettings,
        team: Team,
        state_file: Path,
        identity: str,
        progress: Progress,
    ) -> None:
        self._objective, self._settings, self._team = objective, settings, team
        self._file, self._identity, self._progress = state_file, identity, progress
        self._parameters = [each for each in objective.module.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.rate, weight_decay=settings.weight_decay)
        self._epoch_steps = math.ceil(objective.count / settings.batch)
        self._step = 0
        self._loss_sum = 0.0
        self._losses: list[float] = []
        self._step_losses: list[float] = []
        self._gains: list[float] = []
        self._best: dict[str, torch.Tensor] = {}

    def resume(self, force: bool) -> bool:
        """Go on where an earlier run was, and tell whether there was one."""
        if not self._file.exists():
            return False
        try:
            state: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=True)
            same = bool(state["identity"] == self._identity)
        except Exception as error:  # torch's reader raises whatever its many parts do
            if force:
                return False
            raise TrainingError(
                f"The saved state of the training is damaged: {self._file} ({type(error).__name__}). Pass --force to "
                "begin again."
            ) from None
        if same:
            self._objective.module.load_state_dict(state["module"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._step, self._loss_sum = state["step"], state["loss_sum"]
            self._losses, self._gains, self._best = state["losses"], state["gains"], state["best"]
            self._step_losses = state["step_losses"]
        elif not force:
            raise SettingsError(
                f"There is an unfinished training with other settings, data or weights: {self._file}. Go on with "
                "those, choose another --out, or pass --force to begin again."
            )
        return same

    def train(self) -> TuningReport:
        if self._objective.held_out and not self._gains:
            self._judge()
        total = self._epoch_steps * self._settings.epochs
        for indices in self._steps_left():
            self._progress("Training", self._step, total)
            self._advance(indices, self._step // self._epoch_steps, total)
            self._step += 1
            over = self._step % self._epoch_steps == 0
            if over:
                self._losses.append(self._loss_sum / self._objective.count)
                self._loss_sum = 0.0
                if self._objective.held_out:
                    self._judge()
            if over or self._step % self._settings.save_every == 0:
                self._save()
        self._progress("Training", total, total)
        if self._best:
            self._objective.module.load_state_dict(self._best)
        kept = self._gains.index(max(self._gains)) if self._gains else self._settings.epochs
        return TuningReport(total, tuple(self._losses), tuple(self._gains), kept, tuple(self._step_losses))

    def _steps_left(self) -> Iterator[list[int]]:
        first, made = divmod(self._step, self._epoch_steps)
        for epoch in range(first, self._settings.epochs):
            order = random.Random(f"{self._settings.seed}\0{epoch}")
            steps = list(steps_of_epoch(self._objective.count, self._settings.batch, order))
            yield from steps[made if epoch == first else 0 :]

    def _advance(self, indices: list[int], epoch: int, total: int) -> None:
        """One optimizer step; each process takes its share of the examples."""
        self._objective.module.train()
        # Zeros and not None: a process without an example takes part in the sum like others.
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss_sum = torch.zeros((), device=self._team.device)
        for index in indices[self._team.rank :: self._team.size]:
            name = f"{self._settings.seed}\0{epoch}\0{index}"
            draw = random.Random(name)
            torch.manual_seed(draw.getrandbits(63))  # of dropout
            loss = self._objective.loss(index, draw)
            (loss / len(indices)).backward()
            loss_sum += loss.detach()
        self._sum_gradients()
        summed = float(self._team.total(loss_sum))
        self._loss_sum += summed
        self._step_losses.append(summed / len(indices))
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.clip or math.inf)
        if not torch.isfinite(norm):
            raise TrainingError(f"The gradient is no finite number in step {self._step + 1}. Lower the rate.")
        factor = rate_factor(self._settings.schedule, self._step, total, self._settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate * factor
        self._optimizer.step()

    def _sum_gradients(self) -> None:
        # By hand and all at once: an example is a pass of its own, and of a small step a process may have none, which
        # torch's DistributedDataParallel waits for in vain.
        if self._team.size == 1:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        summed = self._team.total(torch.nn.utils.parameters_to_vector(gradients))
        torch.nn.utils.vector_to_parameters(summed, gradients)

    def _judge(self) -> None:
        """Take the mean gain, and keep the module if it is the highest so far."""
        self._objective.module.eval()
        share = range(self._team.rank, self._objective.held_out, self._team.size)
        with torch.inference_mode():
            gain = sum(self._objective.gain(index) for index in share)
        # float32 is what all devices can sum.
        mean = float(self._team.total(torch.tensor(gain, device=self._team.device))) / self._objective.held_out
        if not self._gains or mean > max(self._gains):
            state = self._objective.module.state_dict()
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        self._gains.append(mean)

    def _save(self) -> None:
        if not self._team.leads:
            return
        state = {
            "identity": self._identity,
            "step": self._step,
            "loss_sum": self._loss_sum,
            "losses": self._losses,
            "step_losses": self._step_losses,
            "gains": self._gains,
            "best": self._best,
            "module": self._objective.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        partial = self._file.with_name(f"{self._file.name}.partial")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own
            partial.unlink(missing_ok=True)
            raise write_error(error if isinstance(error, OSError) else OSError(str(error)), self._file) from None
