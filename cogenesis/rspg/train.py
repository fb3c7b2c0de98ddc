"""`cogenesis rspg train`: a selector learns which retriever of a pool serves a question best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cogenesis.options.training import (
    DEFAULTS,
    HOW,
    BatchOption,
    ClipOption,
    DeviceOption,
    EpochsOption,
    ForceOption,
    JsonOption,
    RateOption,
    SaveEveryOption,
    ScheduleOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    WarmupOption,
    say_trained,
    team_on,
)
from cogenesis.terminal.progress_bar import progress_bar
from edge_runtime.retrieval.selector_card import SelectorMode
from personalization.models.device import Device
from personalization.models.libraries import prepare_command
from personalization.retrievers.selector_data import read_selection
from personalization.training.settings import TuningSettings


def train(
    data: Annotated[Path, typer.Option(help="To learn from, by `rspg data`.")],
    encoder: Annotated[
        Path, typer.Option(help="To begin with: a directory in Hugging Face format, such as Longformer's.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the selector.")],
    mode: Annotated[
        SelectorMode, typer.Option(help="What it reads: prompts, or prompts and what the model wrote.")
    ] = SelectorMode.PRE,
    dev_data: Annotated[
        Path | None, typer.Option(help="Other questions, which tell the best epoch.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Of a candidate; without it as many as the encoder takes.",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    epochs: EpochsOption = DEFAULTS.epochs,
    batch: BatchOption = DEFAULTS.batch,
    rate: RateOption = DEFAULTS.rate,
    schedule: ScheduleOption = DEFAULTS.schedule,
    warmup: WarmupOption = DEFAULTS.warmup,
    clip: ClipOption = DEFAULTS.clip,
    temperature: TemperatureOption = DEFAULTS.temperature,
    save_every: SaveEveryOption = DEFAULTS.save_every,
    seed: SeedOption = DEFAULTS.seed,
    threads: ThreadsOption = DEFAULTS.threads,
    device: DeviceOption = Device.CPU,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a selector of retrievers, before generation (pre) or after it (post).

    A run that was interrupted goes on where it was. Several processes train together:
    `accelerate launch -m cogenesis rspg train ...`, or by `torchrun`.

    Example:
      cogenesis rspg train --data train.json --dev-data dev.json --encoder longformer --mode post -o selector
    """
    settings = TuningSettings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        temperature=temperature,
        save_every=save_every,
        seed=seed,
        threads=threads,
    )
    prepare_command()
    from personalization.retrievers.rspg import train_selector
    from personalization.retrievers.selector import Selector

    training = read_selection(data)
    judging = None if dev_data is None else read_selection(dev_data)
    team = team_on(device)
    selector = Selector.new(encoder, mode, training.retrievers, max_tokens, team.device)
    with progress_bar(visible=team.leads) as progress:
        trained = train_selector(selector, out, training, judging, settings, team, force=force, progress=progress)
    numbers: dict[str, Any] = {"questions": len(training.questions), "retrievers": ", ".join(training.retrievers)}
    if judging is not None:
        numbers["dev_questions"] = len(judging.questions)
    say_trained(trained, team, numbers, as_json)
