"""Options for sampling tokens, and for the length of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from edge_runtime.generation.sampling import Sampling

SAMPLING = "Sampling"

MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Maximum tokens per answer.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Random seed. The same seed gives the same result.")]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature",
        help="Sampling temperature; 0: always the most likely token.",
        rich_help_panel=SAMPLING,
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p",
        help="Sample from the fewest most likely tokens with this probability mass; 1: all.",
        rich_help_panel=SAMPLING,
    ),
]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The common settings for sampling an answer's tokens."""

    temperature: TemperatureOption = 0.7
    top_p: TopPOption = 0.9
    seed: SeedOption = 0

    def sampling(self) -> Sampling:
        """The settings.

        Raises:
            RequestError: one of them is out of range.
        """
        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class AllSamplingOptions(SamplingOptions):
    """All settings for sampling an answer's tokens."""

    sample_top_k: Annotated[
        int,
        typer.Option(
            "--sample-top-k", help="Sample from this many most likely tokens; 0: all.", rich_help_panel=SAMPLING
        ),
    ] = 0
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p",
            help="Drop tokens less likely than this fraction of the most likely token's probability; 0: none.",
            rich_help_panel=SAMPLING,
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            help="Penalty on tokens that are already in the answer; 1: none.",
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0

    def sampling(self) -> Sampling:
        """The settings.

        Raises:
            RequestError: one of them is out of range.
        """
        return Sampling(self.temperature, self.sample_top_k, self.top_p, self.min_p, self.repetition_penalty, self.seed)
