"""Prints the result of an export."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from export.bundle.exported import Exported


def say_exported(exported: Exported, seconds: float, as_json: bool) -> None:
    """Print the exported bundle and a command to try it."""
    manifest, decoder = exported.manifest, exported.decoder
    summary = {
        "bundle": str(exported.path),
        "model": manifest.model.id,
        "architecture": manifest.model.architecture,
        "graph": decoder.kind,
        "quantization": decoder.quantization.scheme,
        "description": decoder.quantization.description,
        "context_length": manifest.context_length,
        "prompt_form": "chat" if manifest.chat_template else "plain",
        "template_variables": dict(manifest.template_variables),
        "size_bytes": exported.size,
        "checked": None if decoder.checked is None else asdict(decoder.checked),
        "seconds": round(seconds, 2),
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{exported.path}: {manifest.model.id}, {decoder.quantization.scheme} ({decoder.quantization.description}), "
        f"{exported.size / 1e6:.1f} MB, context {manifest.context_length:,}, in {seconds:.0f} s."
    )
    check = decoder.checked
    typer.echo(
        "Not compared with the source model."
        if check is None
        else f"Compared with {check.reference} on {check.tokens} tokens: logits differ by {check.difference:.2g} of "
        f"their spread (allowed {check.tolerance:g})."
    )
    if not manifest.chat_template:
        typer.echo("Its prompts are plain text, because the model has no chat template: a base model continues texts.")
    if manifest.template_variables:
        typer.echo(f"Template variables: {json.dumps(dict(manifest.template_variables), ensure_ascii=False)}.")
    choice = "" if decoder == manifest.decoder else f" --backend {decoder.backend}"
    typer.echo(f"Try it: cogenesis chat {exported.path}{choice}")
