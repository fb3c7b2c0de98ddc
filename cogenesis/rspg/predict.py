"""`cogenesis rspg predict`: writes, for each question, the answer with the retriever that a selector chooses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.lamp import TaskOption
from cogenesis.options.output import JsonOption
from cogenesis.options.runner import DeviceOption, ThreadsOption
from cogenesis.rspg.options import SelectionOption, SelectorOption
from cogenesis.rspg.report import bounds_in_words
from cogenesis.terminal.progress_bar import progress_bar
from personalization.lamp.outputs import write_outputs
from personalization.lamp.tasks import find_task
from personalization.models.device import Device
from personalization.models.libraries import prepare_command
from personalization.retrievers.selector_data import bounds, compare_with_best, read_selection


def predict(
    task: TaskOption,
    data: SelectionOption,
    selector: SelectorOption,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File of predictions in LaMP's form to write.", show_default=False)
    ],
    threads: ThreadsOption = 2,
    device: DeviceOption = Device.CPU,
    as_json: JsonOption = False,
) -> None:
    """Select a retriever for each question, and write the answers with these retrievers as predictions.

    The command prints the selection's gain beside those of each retriever alone, random selection and perfect
    selection. A paired test shows whether the selection differs from the best retriever alone.

    Example:
      cogenesis rspg predict --task LaMP-5 --data dev.json --selector selector -o predictions.json
    """
    found = find_task(task)
    prepare_command()
    import torch

    from personalization.retrievers.rspg import select
    from personalization.retrievers.selector import Selector

    torch.set_num_threads(threads)
    selection = read_selection(data)
    with progress_bar(visible=True) as progress:
        choices = select(Selector.load(selector, device), selection, progress)
    answers = {
        question.id: question.answers[choice].output
        for question, choice in zip(selection.questions, choices, strict=True)
    }
    write_outputs(out, found, answers)
    limits, compared = bounds(selection), compare_with_best(selection, choices)
    counts = Counter(selection.retrievers[choice] for choice in choices)
    chosen = {name: counts[name] for name in selection.retrievers}
    if as_json:
        body = {
            "out": str(out),
            "metric": selection.metric,
            "selected": compared.score,
            "against_best": compared.document(),
            "chosen": chosen,
            **asdict(limits),
        }
        typer.echo(json.dumps(body, ensure_ascii=False))
        return
    lines = [f"Mean {selection.metric} of {len(choices)} questions:", *bounds_in_words(limits)]
    lines += [
        f"Selected: {compared.score:.4f}, {compared.difference:+.4f} against {limits.best} alone "
        f"(95 % interval {compared.low:+.4f} to {compared.high:+.4f}, p {compared.p:.4f})",
        f"Chosen: {', '.join(f'{name} {count}' for name, count in chosen.items())}",
        f"Predictions: {out}",
    ]
    typer.echo("\n".join(lines))
