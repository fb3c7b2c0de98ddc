"""Several processes that train one model together, started by `accelerate launch` or `torchrun`; or one alone."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce


class Team:
    """The processes of this run, as this one of them sees it."""

    def __init__(self, *, cpu: bool) -> None:
        """Find the others, if there are any, and this process's device.

        Args:
            cpu: stay on the processor where there is a GPU.
        """
        self._state = PartialState(cpu=cpu)
        self.rank: int = self._state.process_index
        self.size: int = self._state.num_processes
        self.device = str(self._state.device)

    @property
    def leads(self) -> bool:
        """Whether this process writes what all of them made."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors of the same shape, the same in each of them."""
        summed: torch.Tensor = reduce(values, reduction="sum") if self.size > 1 else values
        return summed

    def wait(self) -> None:
        """Go on when all have come here."""
        self._state.wait_for_everyone()
