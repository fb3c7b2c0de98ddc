"""`cogenesis collab fuse-train`: trains a combiner on log-probs to fuse device and cloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.fusion import WithoutOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.runner import ThreadsOption
from cogenesis.options.sampling import SeedOption
from cogenesis.options.training import HOW, RATE, EpochsOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.collab.combiner.settings import CombinerSettings
from personalization.models.libraries import prepare_command

_DEFAULTS = CombinerSettings()


def fuse_train(
    rows: Annotated[
        list[Path], typer.Argument(help="Log-probs to train on, from `collab logprobs`.", show_default=False)
    ],
    dev_rows: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="Log-probs of other users, which decide when to stop. May be given again.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the combiner to write.", show_default=False)],
    without: WithoutOption = _DEFAULTS.without,
    calls: Annotated[
        float, typer.Option(help="Fraction of the steps at which the learned schedule may ask the cloud.")
    ] = _DEFAULTS.calls,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference", help="Also train CoGenesis' original combiner, for comparison (200 MB, takes minutes)."
        ),
    ] = False,
    members: Annotated[
        int, typer.Option(help="Number of networks; the combiner averages them.", rich_help_panel=HOW)
    ] = _DEFAULTS.members,
    hidden: Annotated[int, typer.Option(help="Width of each network.", rich_help_panel=HOW)] = _DEFAULTS.hidden,
    epochs: EpochsOption = _DEFAULTS.epochs,
    rate: Annotated[float, RATE] = _DEFAULTS.rate,
    decay: Annotated[float, typer.Option(help="Weight decay.", rich_help_panel=HOW)] = _DEFAULTS.decay,
    seed: SeedOption = _DEFAULTS.seed,
    threads: ThreadsOption = _DEFAULTS.threads,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the combiner for [bold]generate --fusion learned[/bold], and its schedule: when to ask the cloud.

    Training needs about 10,000 rows from users that the edge model was not tuned on, and takes half a minute. The same
    rows and settings give the same file; a finished run is not repeated.

    Examples:
      cogenesis collab fuse-train fuse/rows.logprobs --dev-rows dev/rows.logprobs --out combiner

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
        report = train_combiners(rows, dev_rows, out, settings, reference=reference, force=force, progress=progress)
    if as_json:
        typer.echo(json.dumps(report))
        return
    compact, dev_nll = report["compact"], report["dev"]
    typer.echo(
        f"{compact['path']}: {compact['size_bytes']:,} bytes; nats per token on the dev users: learned "
        f"{compact['dev_nll']:.4f}, edge {dev_nll['edge']:.4f}, cloud {dev_nll['cloud']:.4f}, best fixed mix "
        f"{dev_nll['fixed']:.4f} ({dev_nll['fixed_name']}); the schedule asks at {compact['asked']:.0%} of the steps."
    )
    if "reference" in report:
        found = report["reference"]
        typer.echo(f"{found['path']}: {found['size_bytes']:,} bytes; {found['dev_nll']:.4f} on the dev users.")
