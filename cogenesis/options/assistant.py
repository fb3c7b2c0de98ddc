"""Options for a bundle on the edge runtime: the user's adapter and how the model runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.request import TemplateVariablesOption, template_variables
from cogenesis.options.runner import THREADS
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, BACKEND_ONNX
from edge_runtime.errors import RequestError

if TYPE_CHECKING:
    from edge_runtime.assistant import Assistant

RUNTIME = "The device's model"


class Backend(enum.StrEnum):
    """Choices of `--backend`."""

    onnx = BACKEND_ONNX
    executorch = BACKEND_EXECUTORCH


AdapterOption = Annotated[
    Path | None,
    typer.Option("--adapter", help="An adapter file for the bundle.", rich_help_panel=RUNTIME, show_default=False),
]
BackendOption = Annotated[
    Backend | None,
    typer.Option(
        "--backend",
        help="Runtime of the bundle's decoder. Default: the bundle's first decoder.",
        rich_help_panel=RUNTIME,
        show_default=False,
    ),
]
ContextLengthOption = Annotated[
    int | None,
    typer.Option(
        "--context-length",
        min=16,
        help="Maximum tokens of prompt and answer together. Default: the model's maximum.",
        rich_help_panel=RUNTIME,
        show_default=False,
    ),
]
UserFileOption = Annotated[
    Path | None,
    typer.Option(
        "--context",
        metavar="FILE",
        help="JSON file with the user's profile, past texts and, for the demo, tasks. See examples/user/user.json.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class AssistantOptions:
    """The adapter that a bundle writes with, and how it runs."""

    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            "--as",
            metavar="ID",
            help="Write with this user's adapter from the bundle.",
            rich_help_panel=RUNTIME,
            show_default=False,
        ),
    ] = None
    adapter: AdapterOption = None
    backend: BackendOption = None
    context_length: ContextLengthOption = None
    threads: Annotated[int | None, THREADS] = None
    template_variable: TemplateVariablesOption = None

    def load(self, bundle: Path) -> Assistant:
        """Load the bundle with the chosen adapter.

        Raises:
            RequestError: both a user and an adapter file are given, or the chat template does not use a variable.
            BundleError, AdapterError: the bundle or the adapter can't be used.
        """
        from edge_runtime.assistant import load

        assistant = load(
            bundle,
            self.backend,
            threads=self.threads,
            context_length=self.context_length,
            template_variables=template_variables(self.template_variable),
        )
        if self.user is not None and self.adapter is not None:
            raise RequestError("Give --user with the user whose adapter to use, or --adapter with a file, not both.")
        if self.user is not None:
            assistant.use_user(self.user)
        elif self.adapter is not None:
            assistant.use_adapter(self.adapter)
        return assistant
