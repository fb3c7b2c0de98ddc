"""Collects the results of examples/collab/run.sh in one report, and writes it into a document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.collab.evaluation.report import (
    EVALUATION_NAME,
    evaluation_markdown,
    markdown_table,
    read_evaluation,
)
from personalization.collab.records.shown import Shown
from personalization.errors import DataError

BEGIN, END = "<!-- results: written by `cogenesis collab report`, from here -->", "<!-- to here -->"
"""Lines of a document that enclose the report."""


def write_report(run: Path, document: Path) -> list[str]:
    """Write a run's report between a document's marks, and its pictures beside the document.

    Args:
        run: directory of the run (OUT of run.sh). It has `shrink.json` and `begin.json`, the benchmarks' `pair.json`
            and `combiner.json`, and a directory per data set with `tune-*.json`, `fuse.json` and `evaluation/`.
            Missing files are left out of the report.
        document: a file with both marks; its pictures go into a directory of the same name.

    Returns:
        The data sets in the report.

    Raises:
        DataError: there is no evaluation, a file can't be read, or the document has no marks.
        WriteError: a file can't be written.
    """
    sets = sorted(path.parent.parent.name for path in run.glob(f"*/evaluation/{EVALUATION_NAME}"))
    if not sets:
        raise DataError(f"There is no evaluation of any data set in {run}. Run examples/collab/run.sh first.")
    before, after = _around(document)
    pictures = document.with_suffix("")
    parts = list(_pair(run))
    for name in sets:
        evaluation = run / name / "evaluation"
        body = read_evaluation(evaluation / EVALUATION_NAME)
        for picture in evaluation.glob("*.svg"):
            with whole_file(pictures / name / picture.name) as file:
                file.write(picture.read_text(encoding="utf-8"))
        parts += [evaluation_markdown(body, f"{pictures.name}/{name}/", level=3).rstrip(), *_tuning(run / name)]
        parts += _combiner(run / name)
    with whole_file(document) as file:
        file.write("\n\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"]))
    return sets


def _around(document: Path) -> tuple[str, str]:
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"The document can't be read: {document} ({error.strerror}).") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"The document has no place for the report: {document}. Add the lines `{BEGIN}` and `{END}`.")
    return before, after


def _pair(run: Path) -> Iterator[str]:
    shrunk = _read(run / "shrink.json")
    if shrunk is None:
        return
    held = shrunk["held_out"]
    yield (
        f"**The pair.** The edge has {len(shrunk['layers'])} of the cloud model's layers and {shrunk['share']:.1%} of "
        f"its parameters. Nats a token on held-out plain text: {held['whole']:.3f} of the whole model; of the edge "
        f"{held['fitted']:.3f} with layers taken out and the others fitted, {held['healed']:.3f} after "
        f"{shrunk['steps']:,} steps of distillation.{_speed(run)}{_begun(run)}"
    )


def _speed(run: Path) -> str:
    """Return the results of benchmarks/pair.py."""
    found = _read(run / "pair.json")
    if found is None:
        return ""
    headline, machine = found["headline"], found["machine"]
    spreads = ", ".join(f"{row['bundle']} ±{row['decode_±']:.1%}" for row in found["rows"])
    return (
        f" In bundles it decodes {headline['decode_speedup']:.2f} times as fast ({spreads}) and reads prompts "
        f"{headline['prefill_speedup']:.2f} times as fast, on {machine['cores']} cores of {machine['cpu']}."
    )


def _begun(run: Path) -> str:
    """Describe the tuning of the edge model before it saw any context."""
    found = _read(run / "begin.json")
    if found is None:
        return ""
    return (
        f" It was then tuned on the public instructions of {found['records']:,} other users' tasks (*begun* below; "
        f"epochs: {len(found['losses'])}), and from there with each kind of prompt."
    )


def _tuning(directory: Path) -> Iterator[str]:
    """Yield the gain from tuning on the development users."""
    tuned = {shown: _read(directory / f"tune-{shown}.json") for shown in Shown}
    lines = [
        [
            f"{shown} context" if shown is not Shown.SKETCH else "with context and sketch",
            str(found["records"]),
            f"{found['dev_losses'][0]:.3f}",
            f"{found['dev_losses'][found['kept_epoch']]:.3f}",
            str(found["kept_epoch"]),
        ]
        for shown, found in tuned.items()
        if found is not None
    ]
    if lines:
        yield "#### Tuning"
        yield "Nats a token on the development users, each model behind the prompts that it was tuned with."
        yield markdown_table(["tuned", "records", "before", "after", "best epoch"], lines)


def _combiner(directory: Path) -> Iterator[str]:
    """Yield the sizes of the trained combiners and their losses on the development users' texts."""
    found = _read(directory / "fuse.json")
    if found is None:
        return
    dev, compact, took = found["dev"], found["compact"], _milliseconds(directory.parent)
    lines = [["learned", _size(compact["size_bytes"]), took["whole"], f"{compact['dev_nll']:.4f}"]]
    if "reference" in found:
        theirs = found["reference"]
        nll = f"{theirs['dev_nll']:.4f}"
        lines.append(["CoGenesis' combiner", _size(theirs["size_bytes"]), took["reference"], nll])
    lines += [["edge", "", "", f"{dev['edge']:.4f}"], ["cloud", "", "", f"{dev['cloud']:.4f}"]]
    lines.append([f"best fixed mix: {dev['fixed_name']}", "", took["geometric"], f"{dev['fixed']:.4f}"])
    yield "#### The combiner"
    yield (
        f"Trained on {compact['rows']:,} tokens; nats a token of the {compact['dev_rows']:,} of the development users, "
        f"by which training was stopped. Its schedule asks the cloud at {compact['asked']:.0%} of them."
    )
    yield markdown_table(["fusion", "size", "ms a row", "NLL"], lines)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _milliseconds(run: Path) -> Mapping[str, str]:
    """Return the results of benchmarks/combiner.py for the smallest vocabulary with thin rows."""
    found = _read(run / "combiner.json")
    row = {} if found is None else found["rows"][0]
    return {what: f"{row[f'{what}_us'] / 1e3:.3f}" if row else "" for what in ("whole", "reference", "geometric")}


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return a step's JSON; None if the step did not run.

    Raises:
        DataError: the file is not valid JSON.
    """
    if not path.exists():
        return None
    try:
        body = json.loads(path.read_bytes())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise DataError(f"This is not what a step of run.sh printed: {path}. Remove it and run the script again.")
    return body
