"""Options for where a command runs: on CPU or GPU, in this process or on a Ray cluster, whole or as a shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from personalization.jobs.runners import Runner, RunnerName, runner_of
from personalization.jobs.shard import Shard
from personalization.models.device import Device

WHERE = "Execution"

THREADS = typer.Option(
    "--threads",
    min=1,
    help="CPU threads per process. If no default is shown: one per core. The number may change the last "
    "bits of results.",
    rich_help_panel=WHERE,
)
ThreadsOption = Annotated[int, THREADS]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", help="Device of a Hugging Face model: cpu, or cuda for a GPU.", rich_help_panel=WHERE),
]


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """The processes of a job, on one machine or a Ray cluster."""

    threads: ThreadsOption = 2
    runner: Annotated[
        RunnerName,
        typer.Option(
            help="Run in this process (local) or on a Ray cluster (ray). The results are the same.",
            rich_help_panel=WHERE,
        ),
    ] = RunnerName.LOCAL
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of a Ray cluster. Default: start a cluster on this machine.",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of workers on the Ray cluster.", rich_help_panel=WHERE, show_default=False),
    ] = None

    def chosen(self) -> Runner:
        """Return the chosen runner.

        Raises:
            RunnerError: the options contradict each other.
        """
        return runner_of(self.runner, self.address, self.workers, self.threads)

    def part(self) -> Shard:
        """Return the shard that this process works on: the whole job."""
        return Shard()


@dataclass(frozen=True, kw_only=True)
class ShardedRunnerOptions(RunnerOptions):
    """`RunnerOptions` with the shard of the job for this process."""

    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Do only part I of N. If all parts share one result, the command writes it after the last part.",
            rich_help_panel=WHERE,
        ),
    ] = "1/1"

    def part(self) -> Shard:
        """Return the shard that this process works on.

        Raises:
            SettingsError: the option has another form.
        """
        return Shard.parse(self.shard)
