"""Options of commands that ask a model: an OpenAI-compatible endpoint, a model directory or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personalization.answering.chat_endpoint import KEY_VARIABLE, ChatEndpoint
from personalization.errors import SettingsError
from personalization.models.device import Device

if TYPE_CHECKING:
    from personalization.answering.checked_answers import Source

WHO, HOW = "Who is asked", "How to ask"

EndpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=f"An OpenAI-compatible API, such as http://127.0.0.1:8000/v1; its key is taken from {KEY_VARIABLE}.",
        rich_help_panel=WHO,
        show_default=False,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", help="Of the endpoint's model.", rich_help_panel=WHO, show_default=False),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", help="A model directory in Hugging Face format.", rich_help_panel=WHO, show_default=False
    ),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", "-b", help="A bundle, on the edge runtime.", rich_help_panel=WHO, show_default=False),
]
DeviceOption = Annotated[Device, typer.Option(help="Where a model directory runs.", rich_help_panel=WHO)]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Of the processor, for a local model.", rich_help_panel=WHO)]
ParallelOption = Annotated[int, typer.Option(min=1, help="Questions to an endpoint at once.", rich_help_panel=HOW)]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds that an endpoint may take for an answer.", rich_help_panel=HOW)
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=HOW)]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="Of an endpoint's answers; local models write greedily.", rich_help_panel=HOW)
]
TriesOption = Annotated[int, typer.Option(min=1, help="Most answers to one question.", rich_help_panel=HOW)]
RunForceOption = Annotated[bool, typer.Option("--force", help="Begin anew where a run with other settings is.")]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the options of a command say of who is asked; see their help."""

    endpoint: str | None
    name: str | None
    model: Path | None
    bundle: Path | None
    device: Device
    threads: int
    parallel: int
    timeout: float
    max_new_tokens: int
    temperature: float

    def open(self) -> Source:
        """Who is asked.

        Raises:
            SettingsError: options contradict each other, or none names a model.
            CogenesisError: a local model can't be loaded.
        """
        from cogenesis.options.answering import writer_of
        from personalization.answering.checked_answers import EndpointSource, Sampler, WriterSource

        if sum(choice is not None for choice in (self.endpoint, self.model, self.bundle)) != 1:
            raise SettingsError("Name one who is asked: --endpoint URL, --model DIR or --bundle DIR.")
        if (self.endpoint is None) != (self.name is None):
            raise SettingsError("--endpoint URL and --name MODEL belong together.")
        if self.endpoint is not None and self.name is not None:
            endpoint = ChatEndpoint(self.endpoint, self.name, self.timeout)
            return EndpointSource(endpoint, Sampler(self.max_new_tokens, self.temperature), self.parallel)
        return WriterSource(
            writer_of(
                self.model,
                self.bundle,
                device=self.device,
                max_new_tokens=self.max_new_tokens,
                beams=1,
                one_line=False,
                threads=self.threads,
            )
        )
