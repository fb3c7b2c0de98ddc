"""`cogenesis lamp score`: scores predictions, and tests whether they differ from another system's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cogenesis.options.lamp import TASK
from cogenesis.options.output import JsonOption
from cogenesis.options.sampling import SeedOption
from cogenesis.terminal.tables import print_table
from edge_runtime.files.whole_file import whole_file
from personalization.errors import SettingsError
from personalization.lamp.outputs import Outputs, read_outputs
from personalization.lamp.scoring import Scored, check_same_task, compare_scored, pair_tasks, read_zip, task_of
from personalization.lamp.scoring import score as judge
from personalization.lamp.tasks import LampTask, find_task
from personalization.measures.significance import Comparison

ONE, ALL = "One task", "Several tasks"


def score(
    golds: Annotated[
        Path | None, typer.Option(help="File with gold outputs.", rich_help_panel=ONE, show_default=False)
    ] = None,
    preds: Annotated[
        Path | None,
        typer.Option(help="File with predictions, in the same form.", rich_help_panel=ONE, show_default=False),
    ] = None,
    task: Annotated[str | None, TASK] = None,
    golds_zip: Annotated[
        Path | None,
        typer.Option(help="Zip file with the gold outputs of several tasks.", rich_help_panel=ALL, show_default=False),
    ] = None,
    preds_zip: Annotated[
        Path | None,
        typer.Option(help="Zip file with the predictions of the same tasks.", rich_help_panel=ALL, show_default=False),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Predictions of another system to compare with: a file or a zip file.", show_default=False),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File (JSON) to write the scores to.", show_default=False)
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="File (JSON) to write each answer's scores to.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score predictions by the task's metrics: accuracy and F1, MAE and RMSE, or ROUGE-1 and ROUGE-L.

    The task is the one that the file names, unless --task is given. With --against, the command also prints the
    difference from another system, its 95 % interval, and the p-value of a paired randomization test.

    Examples:
      cogenesis lamp score --golds dev_outputs.json --preds predictions.json

      cogenesis lamp score --golds dev_outputs.json --preds bm25.json --against no_profile.json

      cogenesis lamp score --golds-zip golds.zip --preds-zip preds.zip --out scores.json
    """
    expected, files = _files(golds, preds, golds_zip, preds_zip, against)
    wanted = None if task is None else find_task(task)
    if wanted is not None and golds is None:
        raise SettingsError("--task goes with --golds. In zip files each file names its own.")
    results = [
        _judged(expected[name], [file.outputs[name] for file in files], [file.where for file in files], wanted, seed)
        for name in expected
    ]
    body = {result.scored.task.name: result.document() for result in results}
    if out is not None:
        _write(out, body)
    if samples is not None:
        _write(samples, {result.scored.task.name: result.scored.document() for result in results})
    if as_json:
        typer.echo(json.dumps(body))
    else:
        print_table([row for result in results for row in result.rows()])


@dataclass(frozen=True, slots=True)
class _File:
    """One side's answers, by the task that the file names, and its name for messages."""

    outputs: dict[str, Outputs]
    where: str


@dataclass(frozen=True, slots=True)
class _Judged:
    """The scores of a task's predictions, and the comparison with another system, if there is one."""

    scored: Scored
    compared: dict[str, Comparison] | None

    def document(self) -> dict[str, Any]:
        """Return the scores as JSON."""
        body: dict[str, Any] = {"questions": len(self.scored.ids), "scores": self.scored.scores}
        if self.compared is not None:
            body["against"] = {name: found.document() for name, found in self.compared.items()}
        return body

    def rows(self) -> list[dict[str, object]]:
        """Return the scores as rows of a table."""
        first: dict[str, object] = {"task": self.scored.task.name, "questions": len(self.scored.ids)}
        if self.compared is None:
            return [{**first, **self.scored.scores}]
        return [
            {
                **first,
                "metric": name,
                "score": found.score,
                "other": found.baseline,
                "difference": found.difference,
                "95 % from": found.low,
                "to": found.high,
                "p": found.p,
            }
            for name, found in self.compared.items()
        ]


def _files(
    golds: Path | None, preds: Path | None, golds_zip: Path | None, preds_zip: Path | None, against: Path | None
) -> tuple[dict[str, Outputs], list[_File]]:
    """Read the gold outputs and the predictions of one or two systems.

    Raises:
        SettingsError: the options contradict each other.
        DataError: a file can't be used.
    """
    if golds is not None and preds is not None and golds_zip is None and preds_zip is None:
        expected = {"": read_outputs(golds)}
        files = [_File({"": read_outputs(path)}, str(path)) for path in (preds, against) if path is not None]
        for file in files:
            check_same_task(expected[""], file.outputs[""], file.where)
        return expected, files
    if golds_zip is not None and preds_zip is not None and golds is None and preds is None:
        expected = read_zip(golds_zip)
        files = [_File(read_zip(path), str(path)) for path in (preds_zip, against) if path is not None]
        for file in files:
            pair_tasks(expected, file.outputs, file.where)
        return expected, files
    raise SettingsError("Give either --golds and --preds, or --golds-zip and --preds-zip.")


def _judged(
    golds: Outputs, predictions: list[Outputs], where: list[str], wanted: LampTask | None, seed: int
) -> _Judged:
    task = task_of(golds, wanted, "--golds")
    judged = [judge(task, golds, outputs, where=place) for outputs, place in zip(predictions, where, strict=True)]
    compared = compare_scored(judged[0], judged[1], seed=seed) if len(judged) > 1 else None
    return _Judged(judged[0], compared)


def _write(path: Path, body: Any) -> None:
    with whole_file(path) as file:
        json.dump(body, file, indent=1)
        file.write("\n")
