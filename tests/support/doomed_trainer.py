"""A trainer that notes whom it trains and is killed once in the middle of one; by name in any process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from personalization.adapters.worker import AdapterTrainer, TrainedUser, WorkerSpec
from personalization.users.data import UserData


class DoomedTrainer(AdapterTrainer):
    """Trains as it should, but for one user, whose first training ends with the process."""

    def __init__(self, spec: WorkerSpec, notes: Path, doomed: str, steps: int) -> None:
        super().__init__(spec)
        self._notes, self._doomed, self._steps = notes, doomed, steps

    def __call__(self, job: UserData) -> TrainedUser:
        with (self._notes / job.user).open("a") as tries:
            print(os.getpid(), file=tries)
        if job.user == self._doomed and len((self._notes / job.user).read_text().split()) == 1:
            self._die_in_the_middle()
        return super().__call__(job)

    def _die_in_the_middle(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        left = iter(range(self._steps - 1, -1, -1))

        def count(*_: Any) -> None:
            if not next(left):
                os.kill(os.getpid(), signal.SIGKILL)

        register_optimizer_step_post_hook(count)
