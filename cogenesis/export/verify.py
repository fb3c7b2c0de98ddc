"""`cogenesis export verify`: checks a bundle or an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption


def verify(
    bundle: Annotated[
        Path,
        typer.Argument(help="Directory from `cogenesis export onnx` or `export encoder`.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: the hash of every file, and the conformance vectors of its decoders and encoders.

    Example: cogenesis export verify bundles/smollm2
    """
    from edge_runtime.retrieval.text_encoder import ENCODER_NAME
    from export.bundle.verify import verify_bundle, verify_encoders

    if (bundle / ENCODER_NAME).is_file():
        encoders = verify_encoders(bundle)
        if as_json:
            typer.echo(json.dumps({"encoders": encoders}))
        else:
            _tell_encoders(encoders)
        return
    result = verify_bundle(bundle)
    if as_json:
        decoders = {backend: asdict(found) for backend, found in result.conformance.items()}
        body = {"bundle": str(bundle), "files": result.files, "size_bytes": result.size, "decoders": decoders}
        typer.echo(json.dumps(body | {"encoders": result.encoders}))
        return
    typer.echo(f"{bundle} is sound: {result.files} files ({result.size / 1e6:.1f} MB) have the right hash;")
    for backend, found in result.conformance.items():
        typer.echo(
            f"{backend}: {found.vectors} conformance vectors agree to {found.max_difference:.2g} logits (allowed "
            f"{found.tolerance:.2g}), {found.greedy_equal} of {found.greedy_total} greedy tokens are equal."
        )
    _tell_encoders(result.encoders)


def _tell_encoders(encoders: Mapping[str, float]) -> None:
    for name, difference in encoders.items():
        typer.echo(
            f"Encoder {name}: all files have the right hash, and vectors agree to {difference:.1g} of their length."
        )
