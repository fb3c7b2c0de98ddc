"""Options for where a command runs: processor or GPU, this process or a Ray cluster, all of the job or a part."""

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
    """In how many processes a job runs, on one machine or a Ray cluster."""

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
        """Where jobs run.

        Raises:
            RunnerError: the options contradict each other.
        """
        return runner_of(self.runner, self.address, self.workers, self.threads)

    def part(self) -> Shard:
        """The part of the job that this process does."""
        return Shard()


@dataclass(frozen=True, kw_only=True)
class ShardedRunnerOptions(RunnerOptions):
    """The same, and which part of the job this process does."""

    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Do only part I of N. If all parts share one result, the command writes it after the last part.",
            rich_help_panel=WHERE,
        ),
    ] = "1/1"

    def part(self) -> Shard:
        """The part of the job that this process does.

        Raises:
            SettingsError: the option is of another form.
        """
        return Shard.parse(self.shard)
