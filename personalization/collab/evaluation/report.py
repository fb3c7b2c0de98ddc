"""Writes an evaluation as Markdown with tables, from the JSON of `collab evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.collab.evaluation.fusion_likelihood import NLL
from personalization.collab.evaluation.judge import SCORE
from personalization.collab.evaluation.measures import DOWN, FACTS, FUSED, QUALITY, SECONDS, STYLE, TRIPS, UP, WORDS
from personalization.collab.evaluation.plots import ANSWERS_PLOT, FUSION_PLOT
from personalization.collab.evaluation.tables import FORMAT
from personalization.errors import DataError

EVALUATION_NAME, REPORT_NAME = "evaluation.json", "report.md"

_COSTS = (WORDS, SECONDS, TRIPS, UP, DOWN, FUSED)


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read the JSON of `collab evaluate`.

    Raises:
        DataError: the file can't be read, or has another format.
    """
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"The evaluation can't be read: {path} ({error.strerror}). Run `cogenesis collab evaluate`."
        ) from None
    except ValueError:
        body = None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise DataError(f"This is no evaluation ('{FORMAT}'): {path}. Give a directory of `cogenesis collab evaluate`.")
    return body


def write_evaluation(body: Mapping[str, Any], directory: Path) -> None:
    """Write the JSON, the report and its pictures into a directory.

    Raises:
        MissingExtraError: matplotlib is not installed.
        WriteError: the files can't be written.
    """
    from personalization.collab.evaluation.plots import draw_evaluation

    with whole_file(directory / EVALUATION_NAME) as file:
        json.dump(body, file, indent=1)
        file.write("\n")
    draw_evaluation(body, directory)
    with whole_file(directory / REPORT_NAME) as file:
        file.write(evaluation_markdown(body, "", level=1))


def evaluation_markdown(body: Mapping[str, Any], pictures: str, level: int = 2) -> str:
    """Return an evaluation as Markdown.

    Args:
        body: the result of `read_evaluation`.
        pictures: prefix of picture names in links, such as "" or "collab/ctx/".
        level: level of the heading.
    """
    mark = "#" * level
    parts = [
        f"{mark} {body['name']}",
        f"{body['records']} records of {body['users']} users. "
        "Intervals are 95 %, by paired bootstrap over users; p by paired randomization over users.",
    ]
    if body["likelihood"]:
        parts += _likelihood(body["likelihood"], pictures, f"{mark}#")
    if body["answers"]:
        parts += _answers(body["answers"], pictures, f"{mark}#")
    for criterion, found in body["judged"].items():
        parts += _judged(criterion, found, f"{mark}#")
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with text in the first column and numbers in the others, without a final newline."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---", *["---:"] * (len(head) - 1)], *lines])


def _likelihood(found: Mapping[str, Any], pictures: str, mark: str) -> list[str]:
    skipped = f"; {found['skipped']} records could not be scored" if found["skipped"] else ""
    lines = [
        [row["system"], f"{row['scores'][NLL]:.4f}", *_difference(row.get("against"), NLL)]
        for row in sorted(found["systems"], key=lambda row: row["scores"][NLL])
    ]
    parts = [
        f"{mark} How likely the users' own texts are",
        f"Negative log-likelihood, nats a token of {found['tokens']:,}{skipped}; teacher-forced and exact, less is "
        "better. Weights of fixed mixes were chosen on these very records, which favours them.",
        markdown_table(["system", "NLL", f"minus {found['baseline']}", "p"], lines),
    ]
    if found["calls"]:
        calls = [
            [one["system"], f"{one['share']:.1%}", f"{one['nll']:.4f}", _kept(one), f"{one['kept']:.0%}"]
            for one in found["calls"]
        ]
        head = ["asking the cloud less", "tokens that ask", "NLL", "gain over edge kept", "over the better kept"]
        parts += [
            "Gains are what asking always saves over the edge, which writes alone where the cloud is not asked, and "
            "over the better of both models. *learned:SHARE* keeps to its share in every answer; *predicted* and "
            "*known* have it over all of them, with a threshold looked up on these very records: by the worth as "
            "predicted, and by what fusion really changes, which nobody can tell before asking.",
            markdown_table(head, calls),
        ]
    return [*parts, f"![NLL by weight, and by share of tokens that ask the cloud]({pictures}{FUSION_PLOT})"]


def _answers(found: Mapping[str, Any], pictures: str, mark: str) -> list[str]:
    quality = [
        [row["system"], *(f"{row['scores'][name]:.3f}{_interval(row.get('against'), name)}" for name in QUALITY)]
        for row in found["systems"]
    ]
    costs = [[row["system"], *(_number(row["scores"].get(name), name) for name in _COSTS)] for row in found["systems"]]
    return [
        f"{mark} What the answers are like",
        f"{found['records']} tasks. In brackets: the interval of the difference to {found['baseline']}. "
        f"{FACTS.capitalize()}: share of the private units that the reference tells which the answer tells, too; "
        f"{STYLE}: Cosine Delta to the user's past texts.",
        markdown_table(["system", *QUALITY], quality),
        markdown_table(["system", *_COSTS], costs),
        f"![Quality of the answers]({pictures}{ANSWERS_PLOT})",
    ]


def _judged(criterion: str, found: Mapping[str, Any], mark: str) -> list[str]:
    lines = [
        [row["system"], f"{row['scores'][SCORE]:.2f}", *_difference(row.get("against"), SCORE, digits=2)]
        for row in found["systems"]
    ]
    return [
        f"{mark} Judged: {criterion}",
        f"1 to 10, each pair in both orders, beside {found['baseline']}; {found['unjudged']} pairs got no verdict.",
        markdown_table(["system", "score", f"minus {found['baseline']}", "p"], lines),
    ]


def _difference(against: Mapping[str, Any] | None, name: str, digits: int = 4) -> tuple[str, str]:
    if against is None or name not in against:
        return "", ""
    one = against[name]
    low, high = f"{one['low']:+.{digits}f}", f"{one['high']:+.{digits}f}"
    return f"{one['difference']:+.{digits}f} ({low} to {high})", f"{one['p']:.4f}"


def _kept(call: Mapping[str, Any]) -> str:
    return f"{call['kept_over_edge']:.1%} ({call['low']:.0%} to {call['high']:.0%})"


def _interval(against: Mapping[str, Any] | None, name: str) -> str:
    if against is None or name not in against:
        return ""
    return f" ({against[name]['low']:+.3f} to {against[name]['high']:+.3f})"


def _number(value: float | None, name: str) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if name == FUSED else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
