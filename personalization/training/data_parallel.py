"""Coordinates the processes that train one model, started by `accelerate launch` or `torchrun`; one is enough."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce


class Team:
    """The processes of this run, from the view of this process."""

    def __init__(self, *, cpu: bool) -> None:
        """Find the other processes, if any, and this process's device.

        Args:
            cpu: use the CPU even if there is a GPU.
        """
        self._state = PartialState(cpu=cpu)
        self.rank: int = self._state.process_index
        self.size: int = self._state.num_processes
        self.device = str(self._state.device)

    @property
    def leads(self) -> bool:
        """Whether this process writes the common result."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum all processes' tensors of the same shape; every process gets the sum."""
        summed: torch.Tensor = reduce(values, reduction="sum") if self.size > 1 else values
        return summed

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        self._state.wait_for_everyone()
