"""Options for the model that answers: an OpenAI-compatible endpoint, a model directory or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.answering import LocalModelOptions
from cogenesis.options.cloud import TimeoutOption
from cogenesis.options.runner import ThreadsOption
from cogenesis.options.sampling import MaxNewTokensOption, TemperatureOption
from personalization.answering.chat_endpoint import KEY_VARIABLE, ChatEndpoint
from personalization.errors import SettingsError

if TYPE_CHECKING:
    from personalization.answering.checked_answers import Source

WHO = "Model that answers"
ENDPOINT = "Endpoint"

ParallelOption = Annotated[
    int,
    typer.Option("--parallel", min=1, help="Maximum concurrent requests to the endpoint.", rich_help_panel=ENDPOINT),
]


@dataclass(frozen=True, kw_only=True)
class SourceOptions(LocalModelOptions):
    """The model that answers, and how it is called."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible API, such as http://127.0.0.1:8000/v1; its key is read from the environment "
            f"variable {KEY_VARIABLE}.",
            rich_help_panel=WHO,
            show_default=False,
        ),
    ] = None
    endpoint_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the model at the endpoint.", rich_help_panel=WHO, show_default=False
        ),
    ] = None
    threads: ThreadsOption = 2
    parallel: ParallelOption = 4
    timeout: TimeoutOption = 120.0
    max_new_tokens: MaxNewTokensOption = 256
    temperature: TemperatureOption = 0.0
    tries: Annotated[int, typer.Option(min=1, help="Maximum attempts per question.", rich_help_panel=ENDPOINT)] = 3

    @property
    def is_given(self) -> bool:
        """Whether a model or an endpoint is given."""
        return any(one is not None for one in (self.endpoint, self.endpoint_model, self.model, self.bundle))

    def open(self) -> Source:
        """Open the model or the endpoint.

        Raises:
            SettingsError: options contradict each other, or none names a model.
            CogenesisError: a local model can't be loaded.
        """
        from personalization.answering.checked_answers import EndpointSource, Sampler, WriterSource

        if sum(choice is not None for choice in (self.endpoint, self.model, self.bundle)) != 1:
            raise SettingsError("Name one who is asked: --endpoint URL, --model DIR or --bundle DIR.")
        if (self.endpoint is None) != (self.endpoint_model is None):
            raise SettingsError("--endpoint URL and --endpoint-model NAME belong together.")
        if self.endpoint is not None and self.endpoint_model is not None:
            endpoint = ChatEndpoint(self.endpoint, self.endpoint_model, self.timeout)
            return EndpointSource(endpoint, Sampler(self.max_new_tokens, self.temperature), self.parallel)
        return WriterSource(
            self.spec(max_new_tokens=self.max_new_tokens, beams=1, one_line=False, threads=self.threads)
        )
