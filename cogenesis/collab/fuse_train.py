"""`cogenesis collab fuse-train`: a combiner learns from log-probs how device and cloud become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.training import HOW, ForceOption, JsonOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.collab.combiner.settings import CombinerSettings
from personalization.models.libraries import prepare_command

_DEFAULTS = CombinerSettings()


def fuse_train(
    rows: Annotated[list[Path], typer.Argument(help="Log-probs to learn from, by `collab logprobs`.")],
    dev: Annotated[list[Path], typer.Option(help="Of other users: they tell when to stop; may be given again.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the combiner.")],
    without: Annotated[
        bool,
        typer.Option("--without", help="Read the edge without context, too; the device then runs a second sequence."),
    ] = _DEFAULTS.without,
    calls: Annotated[
        float, typer.Option(help="Share of the steps at which the learned schedule may ask the cloud.")
    ] = _DEFAULTS.calls,
    reference: Annotated[
        bool, typer.Option("--reference", help="Train CoGenesis' own combiner, too, to compare (200 MB, minutes).")
    ] = False,
    members: Annotated[int, typer.Option(help="Networks of which the mean is taken.", rich_help_panel=HOW)] = (
        _DEFAULTS.members
    ),
    hidden: Annotated[int, typer.Option(help="Width of each.", rich_help_panel=HOW)] = _DEFAULTS.hidden,
    epochs: Annotated[int, typer.Option(help="At most.", rich_help_panel=HOW)] = _DEFAULTS.epochs,
    rate: Annotated[float, typer.Option(help="Highest learning rate, of Adam.", rich_help_panel=HOW)] = _DEFAULTS.rate,
    decay: Annotated[float, typer.Option(help="Of the weights.", rich_help_panel=HOW)] = _DEFAULTS.decay,
    seed: Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=HOW)] = _DEFAULTS.seed,
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.", rich_help_panel=HOW)] = _DEFAULTS.threads,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the combiner for [bold]generate --fusion learned[/bold], and its schedule: when the cloud is worth asking.

    It needs some 10,000 rows of users whom the edge was not tuned on, and half a minute for them. The same rows and
    settings give the same file; a run that is done is not done again.

    Examples:
      cogenesis collab fuse-train fuse/rows.logprobs --dev dev/rows.logprobs --out combiner

      cogenesis export combiner --combiner combiner/combiner.safetensors --bundle my-bundle
    """
    settings = CombinerSettings(
        without=without,
        calls=calls,
        members=members,
        hidden=hidden,
        epochs=epochs,
        rate=rate,
        decay=decay,
        seed=seed,
        threads=threads,
    )
    prepare_command()
    from personalization.collab.combiner.train import train_combiners

    with progress_bar(not as_json) as progress:
        report = train_combiners(rows, dev, out, settings, reference=reference, force=force, progress=progress)
    if as_json:
        typer.echo(json.dumps(report))
        return
    compact, dev_nll = report["compact"], report["dev"]
    typer.echo(
        f"{compact['path']}: {compact['size_bytes']:,} bytes; nats a token on the dev users: learned "
        f"{compact['dev_nll']:.4f}, edge {dev_nll['edge']:.4f}, cloud {dev_nll['cloud']:.4f}, best fixed mix "
        f"{dev_nll['fixed']:.4f} ({dev_nll['fixed_name']}); the schedule asks at {compact['asked']:.0%} of the steps."
    )
    if "reference" in report:
        found = report["reference"]
        typer.echo(f"{found['path']}: {found['size_bytes']:,} bytes; {found['dev_nll']:.4f} on the dev users.")
